"""The peers' side: does one case with one library, as asked by lines of JSON. The same protocol as candlemesh-bench."""

import importlib
import json
import sys
import time


def memory_bytes(name):
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return 0


def main():
    # Libraries that print must not disturb the protocol.
    answers, sys.stdout = sys.stdout, sys.stderr
    peer = None
    for line in sys.stdin:
        request = json.loads(line)
        answer = {}
        match request.pop("op"):
            case "prepare":
                # Variants of a case, such as indicators-many, share its module.
                module = importlib.import_module(f"peers.{request['case'].split('-')[0]}")
                peer = module.PEERS[request["variant"]](request)
                answer = peer.describe() if hasattr(peer, "describe") else {}
            case "run":
                if hasattr(peer, "ready"):
                    peer.ready()
                started = time.perf_counter()
                answer = peer.run()
                # A peer may say itself what counts, for example the mean of several calls.
                answer.setdefault("seconds", time.perf_counter() - started)
                if hasattr(peer, "after"):
                    answer.update(peer.after())
                answer["peak_bytes"] = memory_bytes("VmHWM")
            case "write":
                peer.write(request["folder"])
            case "finish":
                break
        print(json.dumps(answer), file=answers, flush=True)
    if hasattr(peer, "close"):
        peer.close()


if __name__ == "__main__":
    main()
