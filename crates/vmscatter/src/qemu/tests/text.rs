//! The monitor's texts for people.

use crate::qemu::ramblock::{FlatRange, RamBlockInfo, parse_blocks, parse_flat_view, parse_gpa2hva};

#[test]
fn block_list_of_7_2_has_no_addresses() {
    let text = "              Block Name    PSize              Offset               Used              Total\r\n\
        \x20                 pc.ram    4 KiB  0x0000000000000000 0x0000000001000000 0x0000000001000000\r\n\
        \x20   /rom@etc/acpi/tables    4 KiB  0x0000000001080000 0x0000000000020000 0x0000000000200000\r\n";
    let block = |name: &str, bytes| RamBlockInfo { name: name.into(), bytes, host_address: None };
    assert_eq!(parse_blocks(text), [block("pc.ram", 0x100_0000), block("/rom@etc/acpi/tables", 0x2_0000)]);
}

#[test]
fn block_list_of_8_0_on_has_addresses() {
    let text = "   Block Name    PSize              Offset               Used              Total                HVA  RO\n\
        m0    2 MiB  0x0000000000000000 0x0000000001000000 0x0000000001000000 0x00007f222d4fd000  rw\n\
        0000:00:01.0/vga.vram    4 KiB  0x0000000001080000 0x0000000001000000 0x0000000001000000 (nil)  rw\n\
        half a line 0x0000000000000000\n";
    let blocks = parse_blocks(text);
    let seen: Vec<_> = blocks.iter().map(|block| (block.name.as_str(), block.host_address)).collect();
    assert_eq!(seen, [("m0", Some(0x7f22_2d4f_d000)), ("0000:00:01.0/vga.vram", None)]);
}

#[test]
fn only_the_memory_view_counts() {
    let text = "FlatView #0\n AS \"I/O\", root: io\n Root memory region: io\n\
        \x20 0000000000000000-0000000000000007 (prio 0, ram): wrong\n\n\
        FlatView #1\n AS \"memory\", root: system\n AS \"cpu-memory-0\", root: system\n Root memory region: system\n\
        \x20 0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM\n\
        \x20 00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem\n\
        \x20 00000000000c0000-00000000000dffff (prio 1, rom): pc.rom\n\
        \x20 0000000100000000-000000013fffffff (prio 0, ram): pc.ram @00000000c0000000 KVM\n";
    let range =
        |guest_address, region: &str, offset| FlatRange { guest_address, region: region.into(), offset };
    let expected =
        [range(0, "pc.ram", 0), range(0xc_0000, "pc.rom", 0), range(0x1_0000_0000, "pc.ram", 0xc000_0000)];
    assert_eq!(parse_flat_view(text), expected);
}

#[test]
fn host_addresses_are_parsed() {
    let text = "Host virtual address for 0x0 (pc.ram) is 0x7f757c400000\r\n";
    assert_eq!(parse_gpa2hva(text), Some(("pc.ram", 0x7f75_7c40_0000)));
    assert_eq!(parse_gpa2hva("No memory is mapped at address 0x100000000\r\n"), None);
}
