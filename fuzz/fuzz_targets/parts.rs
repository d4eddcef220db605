#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| harp_fuzz::parts::run(input));
