//! Flight tickets, as protobuf or as JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Err(error) = proto::json::parse_ticket(data) {
        assert!(!error.to_string().is_empty());
    }
});
