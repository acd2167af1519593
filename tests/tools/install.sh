# shellcheck shell=bash
# Installs what tests/run, tests/check-chart and .ci/run need. Sourced from the repository root.

VENV=.venv
# Programs that tests start on ports of their own must not be running as services too.
POLICY=/usr/sbin/policy-rc.d

say() { printf '%s\n' "$*"; }

die() {
  printf '%s\n' "$*" >&2
  exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

# True when a PostgreSQL server program exists; Debian keeps it off PATH.
has_postgres() {
  has postgres && return 0
  local program
  for program in /usr/lib/postgresql/*/bin/postgres; do
    [ -x "$program" ] && return 0
  done
  return 1
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# apt_install PACKAGE...: installs Debian packages without starting their services.
apt_install() {
  [ $# -gt 0 ] || return 0
  has apt-get || die "needed but missing here, and there is no apt-get: the programs of the Debian packages $*"
  if [ "$(id -u)" -ne 0 ] && ! has sudo; then
    die "not root and no sudo; install these first: apt-get install -y --no-install-recommends $*"
  fi
  say "installing Debian packages: $* (as root; their services are neither started nor enabled)"
  (
    trap restore_services EXIT
    hold_services
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 "$@" </dev/null
    disable_services "$@"
  )
}

# Keeps the package scripts from starting servers, and PostgreSQL's from creating a cluster.
hold_services() {
  if [ ! -e "$POLICY" ]; then
    held_policy=1
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" >/dev/null
    as_root chmod 755 "$POLICY"
  fi
  local folder=/etc/postgresql-common
  if [ ! -e "$folder/createcluster.conf" ]; then
    as_root mkdir -p "$folder"
    printf 'create_main_cluster = false\n' | as_root tee "$folder/createcluster.conf" >/dev/null
  fi
}

restore_services() {
  [ -z "${held_policy:-}" ] || as_root rm -f "$POLICY"
}

# disable_services PACKAGE...: a package just installed must not start its server at the next boot either.
disable_services() {
  has systemctl || return 0
  local package
  for package in "$@"; do
    case $package in
      redis-server | prometheus) as_root systemctl disable --quiet "$package" 2>/dev/null || true ;;
    esac
  done
}

# Prints the packages that are missing to compile the workspace.
missing_build_packages() {
  # A compiler without the C library's headers is as good as none.
  echo '#include <stdlib.h>' | gcc -x c -fsyntax-only - 2>/dev/null || printf '%s\n' gcc libc6-dev
  has make || echo make
}

# Prints the packages that are missing to make the virtual environment.
missing_python_packages() {
  has python3 && python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
}

# python_env NAME...: makes .venv if absent and installs tests/requirements/NAME.txt into it (a second when present).
python_env() {
  if [ ! -x "$VENV/bin/pip" ]; then
    say "creating the Python environment $VENV"
    rm -rf "$VENV"
    python3 -m venv "$VENV"
  fi
  local name
  for name in "$@"; do
    say "installing tests/requirements/$name.txt into $VENV"
    "$VENV/bin/pip" install --quiet --disable-pip-version-check --root-user-action=ignore --ignore-requires-python \
      -r "tests/requirements/$name.txt"
  done
}

# cargo_path: puts rustup's programs on PATH where the shell has not.
cargo_path() {
  has cargo || PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
  has cargo || die "cargo is missing: install Rust by rustup (https://rustup.rs), stable toolchain"
}
