#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::files::guest_file(data));
