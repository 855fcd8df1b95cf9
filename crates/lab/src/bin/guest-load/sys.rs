//! The few system calls that an init without a C library crate needs.
//!
//! The program is compiled by `build.rs` with nothing but `std`, so the declarations are written out here; they are
//! those of glibc on x86-64 Linux.

use std::arch::asm;
use std::ffi::{CString, c_char, c_int, c_long, c_ulong, c_void};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const MS_RDONLY: c_ulong = 1;
const PROT_READ: c_int = 1;
const MAP_SHARED: c_int = 1;
const MAP_POPULATE: c_int = 0x8000;
const SYS_FINIT_MODULE: c_long = 313;
const PRIO_PROCESS: c_int = 0;
const PAGE_SIZE: usize = 4096;

/// glibc's `struct termios` on x86-64.
#[repr(C)]
#[derive(Clone, Copy)]
struct Termios {
    flags: [u32; 4],
    line: u8,
    control: [u8; 32],
    speeds: [u32; 2],
}

unsafe extern "C" {
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn tcgetattr(fd: c_int, termios: *mut Termios) -> c_int;
    fn cfmakeraw(termios: *mut Termios);
    fn tcsetattr(fd: c_int, actions: c_int, termios: *const Termios) -> c_int;
    fn setpriority(which: c_int, who: u32, priority: c_int) -> c_int;
    fn mmap(
        address: *mut c_void,
        length: usize,
        protection: c_int,
        flags: c_int,
        fd: c_int,
        offset: c_long,
    ) -> *mut c_void;
    fn munmap(address: *mut c_void, length: usize) -> c_int;
    fn ioperm(from: c_ulong, count: c_ulong, on: c_int) -> c_int;
    fn mincore(address: *mut c_void, length: usize, resident: *mut u8) -> c_int;
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn c_string(text: &str) -> CString {
    CString::new(text).expect("no NUL in our own constants")
}

/// Mounts a file system of type `kind`.
pub(crate) fn mount_at(source: &str, target: &str, kind: &str, read_only: bool) -> io::Result<()> {
    let (source, target, kind) = (c_string(source), c_string(target), c_string(kind));
    let flags = if read_only { MS_RDONLY } else { 0 };
    // SAFETY: three NUL-terminated strings that outlive the call; `data` may be null.
    check(unsafe { mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) })
}

/// Mounts a file system of type `kind` with options of its own, to be written to.
pub(crate) fn mount_with(source: &str, target: &str, kind: &str, options: &str) -> io::Result<()> {
    let (source, target, kind, options) =
        (c_string(source), c_string(target), c_string(kind), c_string(options));
    // SAFETY: four NUL-terminated strings that outlive the call.
    check(unsafe { mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast()) })
}

/// Loads one kernel module that needs no parameters.
pub(crate) fn load_module(module: &File) -> io::Result<()> {
    let parameters = c"";
    // SAFETY: finit_module(2) takes a descriptor, a NUL-terminated string and flags.
    let result = unsafe { syscall(SYS_FINIT_MODULE, module.as_raw_fd(), parameters.as_ptr(), 0 as c_int) };
    check(result as c_int)
}

/// Puts a terminal into raw mode: no echo, no line ends of its own making.
pub(crate) fn make_raw(terminal: &File) -> io::Result<()> {
    let mut termios = Termios { flags: [0; 4], line: 0, control: [0; 32], speeds: [0; 2] };
    // SAFETY: `termios` has glibc's layout and lives through all three calls.
    unsafe {
        check(tcgetattr(terminal.as_raw_fd(), &mut termios))?;
        cfmakeraw(&mut termios);
        check(tcsetattr(terminal.as_raw_fd(), 0, &termios))
    }
}

/// Lets the calling thread go before others (`nice` below 0).
pub(crate) fn set_nice(nice: c_int) {
    // SAFETY: no pointers; who = 0 is the calling thread on Linux. A refusal costs only punctuality.
    unsafe { setpriority(PRIO_PROCESS, 0, nice) };
}

/// How many pages of `file` are in the page cache.
pub(crate) fn cached_pages(file: &File, length: usize) -> io::Result<usize> {
    if length == 0 {
        return Ok(0);
    }
    let mut resident = vec![0u8; length.div_ceil(PAGE_SIZE)];
    // SAFETY: a fresh read-only mapping that nobody else sees; `resident` has one byte per page of it.
    unsafe {
        let address = mmap(std::ptr::null_mut(), length, PROT_READ, MAP_SHARED, file.as_raw_fd(), 0);
        if address as isize == -1 {
            return Err(io::Error::last_os_error());
        }
        let result = check(mincore(address, length, resident.as_mut_ptr()));
        munmap(address, length);
        result?;
    }
    Ok(resident.iter().filter(|&&state| state & 1 == 1).count())
}

/// Reads all of `file` into the page cache, without a copy of it.
pub(crate) fn fill_cache(file: &File, length: usize) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    let flags = MAP_SHARED | MAP_POPULATE;
    // SAFETY: a fresh read-only mapping that nobody else sees, and that is not looked at.
    unsafe {
        let address = mmap(std::ptr::null_mut(), length, PROT_READ, flags, file.as_raw_fd(), 0);
        if address as isize == -1 {
            return Err(io::Error::last_os_error());
        }
        check(munmap(address, length))
    }
}

/// Writes a byte to a port of the machine.
pub(crate) fn write_port(port: u16, value: u8) -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { ioperm(port.into(), 1, 1) })?;
    // SAFETY: this thread may write to the port, and what is behind it is no memory of the program's.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
    Ok(())
}
