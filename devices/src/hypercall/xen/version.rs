//! `xen_version`: what there is.

use super::cpuid::VERSION;
use super::errno::{EFAULT, EINVAL, ENOSYS, EPERM};
use crate::hypercall::call::Call;
use crate::hypercall::frame::Fault;
use arch::Isa;

/// `XENFEAT_writable_page_tables`, `_auto_translated_physmap` and `_not_direct_mapped` (Xen,
/// `xen/include/public/features.h`).
const FEATURES: u64 = 1 << 0 | 1 << 2 | 1 << 16;
/// `XENFEAT_hvm_safe_pvclock`: an x86 guest is told the time.
const SAFE_PVCLOCK: u64 = 1 << 9;

/// Answers it.
pub fn answer(call: &mut Call<'_>, op: &str) -> Result<i64, i64> {
    let isa = call.raw.abi.isa();
    let texts: &[(&str, &[u8])] = match op {
        "version" => return Ok(i64::from(VERSION)),
        "pagesize" => return Ok(4096),
        "get_features" => {
            let frame = call.frame("arg").map_err(|Fault| EFAULT)?;
            let submap = match frame.get("submap_idx") {
                0 if isa == Isa::X86_64 => FEATURES | SAFE_PVCLOCK,
                0 => FEATURES,
                1 => 0,
                _ => return Err(EINVAL),
            };
            frame.set("submap", submap);
            return Ok(0);
        }
        "platform_parameters" => {
            call.frame("arg").map_err(|Fault| EFAULT)?.set("virt_start", 0);
            return Ok(0);
        }
        "extraversion" => &[("extraversion", b".0-vmm")],
        "compile_info" => &[
            ("compiler", b"rustc"),
            ("compile_by", b"vmm"),
            ("compile_domain", b"vmm"),
            ("compile_date", b"unknown"),
        ],
        "capabilities" => match isa {
            Isa::X86_64 => &[("capabilities", b"hvm-3.0-x86_32 hvm-3.0-x86_64 ")],
            Isa::Aarch64 => &[("capabilities", b"xen-3.0-aarch64 ")],
        },
        "changeset" => &[("changeset", b"unknown")],
        "guest_handle" => &[("handle", &[0; 16])],
        "commandline" => return Err(EPERM),
        _ => return Err(ENOSYS),
    };
    let frame = call.frame("arg").map_err(|Fault| EFAULT)?;
    texts.iter().for_each(|(field, text)| frame.set_bytes(field, text));
    Ok(0)
}
