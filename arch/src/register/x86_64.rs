//! The registers of x86_64.
//!
//! Names and order of the standard features are those of the GDB manual, "i386 Features";
//! offsets are those of KVM's structures (`arch/x86/include/uapi/asm/kvm.h`) and of the
//! XSAVE area (Intel SDM vol. 1, "Legacy Region of an XSAVE Area").

use super::note::Note;
use super::{Feature, Group, Register, Source, XsaveComponent, describe as row, known_row};
use Feature::{X86Avx, X86Avx512, X86Core, X86Segments, X86Sse, X86System};
use Group::{Debug, Float, General, Segment, System, Vector};
use Source::{DebugRegs, Msr, Regs, SegmentAccess, Sregs, X87Tag, Xsave};
use XsaveComponent::{Avx, Legacy, Opmask, Zmm16, ZmmHigh};

/// Row of RIP.
pub const RIP: usize = known_row(TABLE, "rip");
/// Row of EFLAGS.
pub const EFLAGS: usize = known_row(TABLE, "eflags");

/// Every row.
#[rustfmt::skip]
pub const TABLE: &[Register] = &[
    row("rax", 64, General, X86Core, "int64", Regs(0)).at(Note::Status, 192, 8).at(Note::Qemu, 8, 8),
    row("rbx", 64, General, X86Core, "int64", Regs(1)).at(Note::Status, 152, 8).at(Note::Qemu, 16, 8),
    row("rcx", 64, General, X86Core, "int64", Regs(2)).at(Note::Status, 200, 8).at(Note::Qemu, 24, 8),
    row("rdx", 64, General, X86Core, "int64", Regs(3)).at(Note::Status, 208, 8).at(Note::Qemu, 32, 8),
    row("rsi", 64, General, X86Core, "int64", Regs(4)).at(Note::Status, 216, 8).at(Note::Qemu, 40, 8),
    row("rdi", 64, General, X86Core, "int64", Regs(5)).at(Note::Status, 224, 8).at(Note::Qemu, 48, 8),
    row("rbp", 64, General, X86Core, "data_ptr", Regs(7)).at(Note::Status, 144, 8).at(Note::Qemu, 64, 8),
    row("rsp", 64, General, X86Core, "data_ptr", Regs(6)).at(Note::Status, 264, 8).at(Note::Qemu, 56, 8),
    row("r8", 64, General, X86Core, "int64", Regs(8)).at(Note::Status, 184, 8).at(Note::Qemu, 72, 8),
    row("r9", 64, General, X86Core, "int64", Regs(9)).at(Note::Status, 176, 8).at(Note::Qemu, 80, 8),
    row("r10", 64, General, X86Core, "int64", Regs(10)).at(Note::Status, 168, 8).at(Note::Qemu, 88, 8),
    row("r11", 64, General, X86Core, "int64", Regs(11)).at(Note::Status, 160, 8).at(Note::Qemu, 96, 8),
    row("r12", 64, General, X86Core, "int64", Regs(12)).at(Note::Status, 136, 8).at(Note::Qemu, 104, 8),
    row("r13", 64, General, X86Core, "int64", Regs(13)).at(Note::Status, 128, 8).at(Note::Qemu, 112, 8),
    row("r14", 64, General, X86Core, "int64", Regs(14)).at(Note::Status, 120, 8).at(Note::Qemu, 120, 8),
    row("r15", 64, General, X86Core, "int64", Regs(15)).at(Note::Status, 112, 8).at(Note::Qemu, 128, 8),
    row("rip", 64, General, X86Core, "code_ptr", Regs(16)).at(Note::Status, 240, 8).at(Note::Qemu, 136, 8),
    row("eflags", 32, General, X86Core, "i386_eflags", Regs(17)).at(Note::Status, 256, 8).at(Note::Qemu, 144, 8),
    row("cs", 32, Segment, X86Core, "int32", Sregs(12, 2)).at(Note::Status, 248, 8).at(Note::Qemu, 152, 4),
    row("ss", 32, Segment, X86Core, "int32", Sregs(132, 2)).at(Note::Status, 272, 8).at(Note::Qemu, 272, 4),
    row("ds", 32, Segment, X86Core, "int32", Sregs(36, 2)).at(Note::Status, 296, 8).at(Note::Qemu, 176, 4),
    row("es", 32, Segment, X86Core, "int32", Sregs(60, 2)).at(Note::Status, 304, 8).at(Note::Qemu, 200, 4),
    row("fs", 32, Segment, X86Core, "int32", Sregs(84, 2)).at(Note::Status, 312, 8).at(Note::Qemu, 224, 4),
    row("gs", 32, Segment, X86Core, "int32", Sregs(108, 2)).at(Note::Status, 320, 8).at(Note::Qemu, 248, 4),
    row("st0", 80, Float, X86Core, "i387_ext", Xsave(Legacy, 32, 10)).at(Note::Float, 32, 10),
    row("st1", 80, Float, X86Core, "i387_ext", Xsave(Legacy, 48, 10)).at(Note::Float, 48, 10),
    row("st2", 80, Float, X86Core, "i387_ext", Xsave(Legacy, 64, 10)).at(Note::Float, 64, 10),
    row("st3", 80, Float, X86Core, "i387_ext", Xsave(Legacy, 80, 10)).at(Note::Float, 80, 10),
    row("st4", 80, Float, X86Core, "i387_ext", Xsave(Legacy, 96, 10)).at(Note::Float, 96, 10),
    row("st5", 80, Float, X86Core, "i387_ext", Xsave(Legacy, 112, 10)).at(Note::Float, 112, 10),
    row("st6", 80, Float, X86Core, "i387_ext", Xsave(Legacy, 128, 10)).at(Note::Float, 128, 10),
    row("st7", 80, Float, X86Core, "i387_ext", Xsave(Legacy, 144, 10)).at(Note::Float, 144, 10),
    row("fctrl", 32, Float, X86Core, "int", Xsave(Legacy, 0, 2)).at(Note::Float, 0, 2),
    row("fstat", 32, Float, X86Core, "int", Xsave(Legacy, 2, 2)).at(Note::Float, 2, 2),
    row("ftag", 32, Float, X86Core, "int", X87Tag),
    row("fiseg", 32, Float, X86Core, "int", Xsave(Legacy, 12, 2)).at(Note::Float, 12, 2),
    row("fioff", 32, Float, X86Core, "int", Xsave(Legacy, 8, 4)).at(Note::Float, 8, 4),
    row("foseg", 32, Float, X86Core, "int", Xsave(Legacy, 20, 2)).at(Note::Float, 20, 2),
    row("fooff", 32, Float, X86Core, "int", Xsave(Legacy, 16, 4)).at(Note::Float, 16, 4),
    row("fop", 32, Float, X86Core, "int", Xsave(Legacy, 6, 2)).at(Note::Float, 6, 2),
    row("xmm0", 128, Vector, X86Sse, "vec128", Xsave(Legacy, 160, 16)).at(Note::Float, 160, 16),
    row("xmm1", 128, Vector, X86Sse, "vec128", Xsave(Legacy, 176, 16)).at(Note::Float, 176, 16),
    row("xmm2", 128, Vector, X86Sse, "vec128", Xsave(Legacy, 192, 16)).at(Note::Float, 192, 16),
    row("xmm3", 128, Vector, X86Sse, "vec128", Xsave(Legacy, 208, 16)).at(Note::Float, 208, 16),
    row("xmm4", 128, Vector, X86Sse, "vec128", Xsave(Legacy, 224, 16)).at(Note::Float, 224, 16),
    row("xmm5", 128, Vector, X86Sse, "vec128", Xsave(Legacy, 240, 16)).at(Note::Float, 240, 16),
    row("xmm6", 128, Vector, X86Sse, "vec128", Xsave(Legacy, 256, 16)).at(Note::Float, 256, 16),
    row("xmm7", 128, Vector, X86Sse, "vec128", Xsave(Legacy, 272, 16)).at(Note::Float, 272, 16),
    row("xmm8", 128, Vector, X86Sse, "vec128", Xsave(Legacy, 288, 16)).at(Note::Float, 288, 16),
    row("xmm9", 128, Vector, X86Sse, "vec128", Xsave(Legacy, 304, 16)).at(Note::Float, 304, 16),
    row("xmm10", 128, Vector, X86Sse, "vec128", Xsave(Legacy, 320, 16)).at(Note::Float, 320, 16),
    row("xmm11", 128, Vector, X86Sse, "vec128", Xsave(Legacy, 336, 16)).at(Note::Float, 336, 16),
    row("xmm12", 128, Vector, X86Sse, "vec128", Xsave(Legacy, 352, 16)).at(Note::Float, 352, 16),
    row("xmm13", 128, Vector, X86Sse, "vec128", Xsave(Legacy, 368, 16)).at(Note::Float, 368, 16),
    row("xmm14", 128, Vector, X86Sse, "vec128", Xsave(Legacy, 384, 16)).at(Note::Float, 384, 16),
    row("xmm15", 128, Vector, X86Sse, "vec128", Xsave(Legacy, 400, 16)).at(Note::Float, 400, 16),
    row("mxcsr", 32, Vector, X86Sse, "i386_mxcsr", Xsave(Legacy, 24, 4)).at(Note::Float, 24, 4),
    row("fs_base", 64, Segment, X86Segments, "data_ptr", Sregs(72, 8)).at(Note::Status, 280, 8).at(Note::Qemu, 240, 8),
    row("gs_base", 64, Segment, X86Segments, "data_ptr", Sregs(96, 8)).at(Note::Status, 288, 8).at(Note::Qemu, 264, 8),
    row("ymm0h", 128, Vector, X86Avx, "uint128", Xsave(Avx, 0, 16)),
    row("ymm1h", 128, Vector, X86Avx, "uint128", Xsave(Avx, 16, 16)),
    row("ymm2h", 128, Vector, X86Avx, "uint128", Xsave(Avx, 32, 16)),
    row("ymm3h", 128, Vector, X86Avx, "uint128", Xsave(Avx, 48, 16)),
    row("ymm4h", 128, Vector, X86Avx, "uint128", Xsave(Avx, 64, 16)),
    row("ymm5h", 128, Vector, X86Avx, "uint128", Xsave(Avx, 80, 16)),
    row("ymm6h", 128, Vector, X86Avx, "uint128", Xsave(Avx, 96, 16)),
    row("ymm7h", 128, Vector, X86Avx, "uint128", Xsave(Avx, 112, 16)),
    row("ymm8h", 128, Vector, X86Avx, "uint128", Xsave(Avx, 128, 16)),
    row("ymm9h", 128, Vector, X86Avx, "uint128", Xsave(Avx, 144, 16)),
    row("ymm10h", 128, Vector, X86Avx, "uint128", Xsave(Avx, 160, 16)),
    row("ymm11h", 128, Vector, X86Avx, "uint128", Xsave(Avx, 176, 16)),
    row("ymm12h", 128, Vector, X86Avx, "uint128", Xsave(Avx, 192, 16)),
    row("ymm13h", 128, Vector, X86Avx, "uint128", Xsave(Avx, 208, 16)),
    row("ymm14h", 128, Vector, X86Avx, "uint128", Xsave(Avx, 224, 16)),
    row("ymm15h", 128, Vector, X86Avx, "uint128", Xsave(Avx, 240, 16)),
    row("xmm16", 128, Vector, X86Avx512, "vec128", Xsave(Zmm16, 0, 16)),
    row("xmm17", 128, Vector, X86Avx512, "vec128", Xsave(Zmm16, 64, 16)),
    row("xmm18", 128, Vector, X86Avx512, "vec128", Xsave(Zmm16, 128, 16)),
    row("xmm19", 128, Vector, X86Avx512, "vec128", Xsave(Zmm16, 192, 16)),
    row("xmm20", 128, Vector, X86Avx512, "vec128", Xsave(Zmm16, 256, 16)),
    row("xmm21", 128, Vector, X86Avx512, "vec128", Xsave(Zmm16, 320, 16)),
    row("xmm22", 128, Vector, X86Avx512, "vec128", Xsave(Zmm16, 384, 16)),
    row("xmm23", 128, Vector, X86Avx512, "vec128", Xsave(Zmm16, 448, 16)),
    row("xmm24", 128, Vector, X86Avx512, "vec128", Xsave(Zmm16, 512, 16)),
    row("xmm25", 128, Vector, X86Avx512, "vec128", Xsave(Zmm16, 576, 16)),
    row("xmm26", 128, Vector, X86Avx512, "vec128", Xsave(Zmm16, 640, 16)),
    row("xmm27", 128, Vector, X86Avx512, "vec128", Xsave(Zmm16, 704, 16)),
    row("xmm28", 128, Vector, X86Avx512, "vec128", Xsave(Zmm16, 768, 16)),
    row("xmm29", 128, Vector, X86Avx512, "vec128", Xsave(Zmm16, 832, 16)),
    row("xmm30", 128, Vector, X86Avx512, "vec128", Xsave(Zmm16, 896, 16)),
    row("xmm31", 128, Vector, X86Avx512, "vec128", Xsave(Zmm16, 960, 16)),
    row("ymm16h", 128, Vector, X86Avx512, "uint128", Xsave(Zmm16, 16, 16)),
    row("ymm17h", 128, Vector, X86Avx512, "uint128", Xsave(Zmm16, 80, 16)),
    row("ymm18h", 128, Vector, X86Avx512, "uint128", Xsave(Zmm16, 144, 16)),
    row("ymm19h", 128, Vector, X86Avx512, "uint128", Xsave(Zmm16, 208, 16)),
    row("ymm20h", 128, Vector, X86Avx512, "uint128", Xsave(Zmm16, 272, 16)),
    row("ymm21h", 128, Vector, X86Avx512, "uint128", Xsave(Zmm16, 336, 16)),
    row("ymm22h", 128, Vector, X86Avx512, "uint128", Xsave(Zmm16, 400, 16)),
    row("ymm23h", 128, Vector, X86Avx512, "uint128", Xsave(Zmm16, 464, 16)),
    row("ymm24h", 128, Vector, X86Avx512, "uint128", Xsave(Zmm16, 528, 16)),
    row("ymm25h", 128, Vector, X86Avx512, "uint128", Xsave(Zmm16, 592, 16)),
    row("ymm26h", 128, Vector, X86Avx512, "uint128", Xsave(Zmm16, 656, 16)),
    row("ymm27h", 128, Vector, X86Avx512, "uint128", Xsave(Zmm16, 720, 16)),
    row("ymm28h", 128, Vector, X86Avx512, "uint128", Xsave(Zmm16, 784, 16)),
    row("ymm29h", 128, Vector, X86Avx512, "uint128", Xsave(Zmm16, 848, 16)),
    row("ymm30h", 128, Vector, X86Avx512, "uint128", Xsave(Zmm16, 912, 16)),
    row("ymm31h", 128, Vector, X86Avx512, "uint128", Xsave(Zmm16, 976, 16)),
    row("k0", 64, Vector, X86Avx512, "uint64", Xsave(Opmask, 0, 8)),
    row("k1", 64, Vector, X86Avx512, "uint64", Xsave(Opmask, 8, 8)),
    row("k2", 64, Vector, X86Avx512, "uint64", Xsave(Opmask, 16, 8)),
    row("k3", 64, Vector, X86Avx512, "uint64", Xsave(Opmask, 24, 8)),
    row("k4", 64, Vector, X86Avx512, "uint64", Xsave(Opmask, 32, 8)),
    row("k5", 64, Vector, X86Avx512, "uint64", Xsave(Opmask, 40, 8)),
    row("k6", 64, Vector, X86Avx512, "uint64", Xsave(Opmask, 48, 8)),
    row("k7", 64, Vector, X86Avx512, "uint64", Xsave(Opmask, 56, 8)),
    row("zmm0h", 256, Vector, X86Avx512, "v2ui128", Xsave(ZmmHigh, 0, 32)),
    row("zmm1h", 256, Vector, X86Avx512, "v2ui128", Xsave(ZmmHigh, 32, 32)),
    row("zmm2h", 256, Vector, X86Avx512, "v2ui128", Xsave(ZmmHigh, 64, 32)),
    row("zmm3h", 256, Vector, X86Avx512, "v2ui128", Xsave(ZmmHigh, 96, 32)),
    row("zmm4h", 256, Vector, X86Avx512, "v2ui128", Xsave(ZmmHigh, 128, 32)),
    row("zmm5h", 256, Vector, X86Avx512, "v2ui128", Xsave(ZmmHigh, 160, 32)),
    row("zmm6h", 256, Vector, X86Avx512, "v2ui128", Xsave(ZmmHigh, 192, 32)),
    row("zmm7h", 256, Vector, X86Avx512, "v2ui128", Xsave(ZmmHigh, 224, 32)),
    row("zmm8h", 256, Vector, X86Avx512, "v2ui128", Xsave(ZmmHigh, 256, 32)),
    row("zmm9h", 256, Vector, X86Avx512, "v2ui128", Xsave(ZmmHigh, 288, 32)),
    row("zmm10h", 256, Vector, X86Avx512, "v2ui128", Xsave(ZmmHigh, 320, 32)),
    row("zmm11h", 256, Vector, X86Avx512, "v2ui128", Xsave(ZmmHigh, 352, 32)),
    row("zmm12h", 256, Vector, X86Avx512, "v2ui128", Xsave(ZmmHigh, 384, 32)),
    row("zmm13h", 256, Vector, X86Avx512, "v2ui128", Xsave(ZmmHigh, 416, 32)),
    row("zmm14h", 256, Vector, X86Avx512, "v2ui128", Xsave(ZmmHigh, 448, 32)),
    row("zmm15h", 256, Vector, X86Avx512, "v2ui128", Xsave(ZmmHigh, 480, 32)),
    row("zmm16h", 256, Vector, X86Avx512, "v2ui128", Xsave(Zmm16, 32, 32)),
    row("zmm17h", 256, Vector, X86Avx512, "v2ui128", Xsave(Zmm16, 96, 32)),
    row("zmm18h", 256, Vector, X86Avx512, "v2ui128", Xsave(Zmm16, 160, 32)),
    row("zmm19h", 256, Vector, X86Avx512, "v2ui128", Xsave(Zmm16, 224, 32)),
    row("zmm20h", 256, Vector, X86Avx512, "v2ui128", Xsave(Zmm16, 288, 32)),
    row("zmm21h", 256, Vector, X86Avx512, "v2ui128", Xsave(Zmm16, 352, 32)),
    row("zmm22h", 256, Vector, X86Avx512, "v2ui128", Xsave(Zmm16, 416, 32)),
    row("zmm23h", 256, Vector, X86Avx512, "v2ui128", Xsave(Zmm16, 480, 32)),
    row("zmm24h", 256, Vector, X86Avx512, "v2ui128", Xsave(Zmm16, 544, 32)),
    row("zmm25h", 256, Vector, X86Avx512, "v2ui128", Xsave(Zmm16, 608, 32)),
    row("zmm26h", 256, Vector, X86Avx512, "v2ui128", Xsave(Zmm16, 672, 32)),
    row("zmm27h", 256, Vector, X86Avx512, "v2ui128", Xsave(Zmm16, 736, 32)),
    row("zmm28h", 256, Vector, X86Avx512, "v2ui128", Xsave(Zmm16, 800, 32)),
    row("zmm29h", 256, Vector, X86Avx512, "v2ui128", Xsave(Zmm16, 864, 32)),
    row("zmm30h", 256, Vector, X86Avx512, "v2ui128", Xsave(Zmm16, 928, 32)),
    row("zmm31h", 256, Vector, X86Avx512, "v2ui128", Xsave(Zmm16, 992, 32)),
    row("cs_base", 64, Segment, X86System, "data_ptr", Sregs(0, 8)).at(Note::Qemu, 168, 8),
    row("ss_base", 64, Segment, X86System, "data_ptr", Sregs(120, 8)).at(Note::Qemu, 288, 8),
    row("ds_base", 64, Segment, X86System, "data_ptr", Sregs(24, 8)).at(Note::Qemu, 192, 8),
    row("es_base", 64, Segment, X86System, "data_ptr", Sregs(48, 8)).at(Note::Qemu, 216, 8),
    row("k_gs_base", 64, Segment, X86System, "data_ptr", Msr(0xc000_0102)).at(Note::Qemu, 432, 8),
    row("tr", 16, Segment, X86System, "int16", Sregs(156, 2)).at(Note::Qemu, 320, 4),
    row("tr_base", 64, Segment, X86System, "data_ptr", Sregs(144, 8)).at(Note::Qemu, 336, 8),
    row("ldt", 16, Segment, X86System, "int16", Sregs(180, 2)).at(Note::Qemu, 296, 4),
    row("ldt_base", 64, Segment, X86System, "data_ptr", Sregs(168, 8)).at(Note::Qemu, 312, 8),
    row("cs_limit", 32, Segment, X86System, "int32", Sregs(8, 4)).at(Note::Qemu, 156, 4),
    row("cs_ar", 32, Segment, X86System, "int32", SegmentAccess(14)),
    row("ss_limit", 32, Segment, X86System, "int32", Sregs(128, 4)).at(Note::Qemu, 276, 4),
    row("ss_ar", 32, Segment, X86System, "int32", SegmentAccess(134)),
    row("ds_limit", 32, Segment, X86System, "int32", Sregs(32, 4)).at(Note::Qemu, 180, 4),
    row("ds_ar", 32, Segment, X86System, "int32", SegmentAccess(38)),
    row("es_limit", 32, Segment, X86System, "int32", Sregs(56, 4)).at(Note::Qemu, 204, 4),
    row("es_ar", 32, Segment, X86System, "int32", SegmentAccess(62)),
    row("fs_limit", 32, Segment, X86System, "int32", Sregs(80, 4)).at(Note::Qemu, 228, 4),
    row("fs_ar", 32, Segment, X86System, "int32", SegmentAccess(86)),
    row("gs_limit", 32, Segment, X86System, "int32", Sregs(104, 4)).at(Note::Qemu, 252, 4),
    row("gs_ar", 32, Segment, X86System, "int32", SegmentAccess(110)),
    row("tr_limit", 32, Segment, X86System, "int32", Sregs(152, 4)).at(Note::Qemu, 324, 4),
    row("tr_ar", 32, Segment, X86System, "int32", SegmentAccess(158)),
    row("ldt_limit", 32, Segment, X86System, "int32", Sregs(176, 4)).at(Note::Qemu, 300, 4),
    row("ldt_ar", 32, Segment, X86System, "int32", SegmentAccess(182)),
    row("gdt_base", 64, Segment, X86System, "data_ptr", Sregs(192, 8)).at(Note::Qemu, 360, 8),
    row("gdt_limit", 16, Segment, X86System, "int16", Sregs(200, 2)).at(Note::Qemu, 348, 2),
    row("idt_base", 64, Segment, X86System, "data_ptr", Sregs(208, 8)).at(Note::Qemu, 384, 8),
    row("idt_limit", 16, Segment, X86System, "int16", Sregs(216, 2)).at(Note::Qemu, 372, 2),
    row("cr0", 64, System, X86System, "int64", Sregs(224, 8)).at(Note::Qemu, 392, 8),
    row("cr2", 64, System, X86System, "data_ptr", Sregs(232, 8)).at(Note::Qemu, 408, 8),
    row("cr3", 64, System, X86System, "int64", Sregs(240, 8)).at(Note::Qemu, 416, 8),
    row("cr4", 64, System, X86System, "int64", Sregs(248, 8)).at(Note::Qemu, 424, 8),
    row("cr8", 64, System, X86System, "int64", Sregs(256, 8)),
    row("efer", 64, System, X86System, "int64", Sregs(264, 8)),
    row("apic_base", 64, System, X86System, "int64", Sregs(272, 8)),
    row("star", 64, System, X86System, "int64", Msr(0xc000_0081)),
    row("lstar", 64, System, X86System, "code_ptr", Msr(0xc000_0082)),
    row("cstar", 64, System, X86System, "code_ptr", Msr(0xc000_0083)),
    row("sfmask", 64, System, X86System, "int64", Msr(0xc000_0084)),
    row("tsc_aux", 64, System, X86System, "int64", Msr(0xc000_0103)),
    row("tsc", 64, System, X86System, "int64", Msr(0x10)),
    row("misc_enable", 64, System, X86System, "int64", Msr(0x1a0)),
    row("sysenter_cs", 64, System, X86System, "int64", Msr(0x174)),
    row("sysenter_esp", 64, System, X86System, "int64", Msr(0x175)),
    row("sysenter_eip", 64, System, X86System, "code_ptr", Msr(0x176)),
    row("pat", 64, System, X86System, "int64", Msr(0x277)),
    row("dr0", 64, Debug, X86System, "data_ptr", DebugRegs(0)),
    row("dr1", 64, Debug, X86System, "data_ptr", DebugRegs(1)),
    row("dr2", 64, Debug, X86System, "data_ptr", DebugRegs(2)),
    row("dr3", 64, Debug, X86System, "data_ptr", DebugRegs(3)),
    row("dr6", 64, Debug, X86System, "int64", DebugRegs(4)),
    row("dr7", 64, Debug, X86System, "int64", DebugRegs(5)),
];

/// Bytes of `struct kvm_segment` that say what the segment is, from `type` on.
pub const SEGMENT_ACCESS: usize = 9;

/// Of each of these bytes (`type`, `present`, `dpl`, `db`, `s`, `l`, `g`, `avl`, `unusable`), where the access
/// rights have it: first bit, and how many.
const ACCESS_BITS: [(u32, u32); SEGMENT_ACCESS] =
    [(0, 4), (7, 1), (5, 2), (14, 1), (4, 1), (13, 1), (15, 1), (12, 1), (16, 1)];

/// A segment's access rights, as a VMCS has them (Intel SDM vol. 3, "Guest Register State"): bits 8 to 23 of
/// the second word of its descriptor, without the limit's, and bit 16 for one that is unusable.
pub fn access_rights(bytes: [u8; SEGMENT_ACCESS]) -> u32 {
    let field = |(byte, (shift, width)): (u8, (u32, u32))| (u32::from(byte) & ((1 << width) - 1)) << shift;
    bytes.into_iter().zip(ACCESS_BITS).map(field).fold(0, |rights, field| rights | field)
}

/// The bytes of `struct kvm_segment` for access rights.
pub fn access_bytes(rights: u32) -> [u8; SEGMENT_ACCESS] {
    ACCESS_BITS.map(|(shift, width)| (rights >> shift).to_le_bytes()[0] & ((1 << width) - 1))
}

/// The full x87 tag word from the abridged one of the XSAVE area: two bits a register, 3 for
/// an empty one, 1 for zero, 2 for what is special, 0 for the rest. `registers` are the ten
/// bytes of ST0 to ST7, `top` the stack's top from the status word (Intel SDM vol. 1,
/// "FXSAVE", "Recreating FSAVE format").
pub fn full_tag_word(abridged: u8, registers: &[[u8; 10]; 8], top: u8) -> u16 {
    (0..8u8).fold(0, |word, physical| {
        let tag = if abridged >> physical & 1 == 0 {
            3
        } else {
            let value = &registers[usize::from(physical.wrapping_sub(top) & 7)];
            let exponent = u16::from_le_bytes([value[8], value[9]]) & 0x7fff;
            let integer_bit = value[7] & 0x80 != 0;
            match exponent {
                0 if value[..8] == [0; 8] => 1,
                0 | 0x7fff => 2,
                _ if !integer_bit => 2,
                _ => 0,
            }
        };
        word | tag << (2 * physical)
    })
}

/// The abridged tag word from the full one: a bit for each register that is not empty.
pub fn abridged_tag_word(full: u16) -> u8 {
    (0..8u8).fold(0, |word, register| word | u8::from(full >> (2 * register) & 3 != 3) << register)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_words_go_both_ways() {
        let mut registers = [[0; 10]; 8];
        registers[0] = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]; // 1.0
        registers[2] = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x7f]; // infinity
        // With the top at 5, ST0 to ST2 are the physical registers 5, 6 and 7.
        let full = full_tag_word(0b1110_0000, &registers, 5);
        assert_eq!(full, 0b10_01_00_11_11_11_11_11);
        assert_eq!(abridged_tag_word(full), 0b1110_0000);
        assert_eq!(full_tag_word(0, &registers, 0), 0xffff);
    }

    #[test]
    fn standard_features_have_all_registers_that_gdb_asks_for() {
        let count = |feature| TABLE.iter().filter(|row| row.feature == feature).count();
        assert_eq!(count(X86Core), 24 + 8 + 8);
        assert_eq!(count(X86Sse), 17);
        assert_eq!(count(X86Avx), 16);
        assert_eq!(count(X86Avx512), 16 + 16 + 8 + 32);
    }
}
