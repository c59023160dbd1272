//! How the descriptors that this process may have (getrlimit(2), `RLIMIT_NOFILE`) are divided among a guest's devices, so
//! that none of them takes what another needs, however many files or connections the guest asks for.

use super::config::VirtioDevice;
use super::nets;
use devices::virtio::vsock::MOST_CONNECTIONS;
use nix::sys::resource::{Resource, getrlimit};

/// What is neither a share's, a network's nor a socket device's.
const REST: usize = 256;
/// What each share has at least, and at most.
const LEAST_OF_SHARE: usize = 64;
const MOST_OF_SHARE: usize = 16 << 10;
/// What each socket device has at least.
const LEAST_OF_VSOCK: usize = 16;

/// What each device of a kind may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// A shared folder.
    pub share: usize,
    /// A socket device: a connection of its has one.
    pub vsock: usize,
}

/// What there is to divide among: shares, socket devices, and what networks need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Needs {
    shares: usize,
    vsocks: usize,
    networks: usize,
}

impl Budget {
    /// For these devices, of what this process may have.
    pub fn new(devices: &[VirtioDevice]) -> Budget {
        let all = getrlimit(Resource::RLIMIT_NOFILE)
            .map_or(1024, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX));
        let mut needs = Needs::default();
        for device in devices {
            match device {
                VirtioDevice::Share(_) => needs.shares += 1,
                VirtioDevice::Vsock(_) => needs.vsocks += 1,
                VirtioDevice::Net(net) => needs.networks += nets::descriptors(net),
                VirtioDevice::Entropy | VirtioDevice::Disk(_) | VirtioDevice::Console(_) => {}
            }
        }
        Budget::divided(all, needs)
    }

    /// Socket devices get half of what is left, beside shares, and no more than they can use.
    fn divided(all: usize, needs: Needs) -> Budget {
        let left = all.saturating_sub(REST + needs.networks);
        let for_vsocks = if needs.shares > 0 { left / 2 } else { left };
        let vsock = (for_vsocks / needs.vsocks.max(1)).clamp(LEAST_OF_VSOCK, MOST_CONNECTIONS);
        let for_shares = left.saturating_sub(vsock * needs.vsocks);
        let share = (for_shares / needs.shares.max(1)).clamp(LEAST_OF_SHARE, MOST_OF_SHARE);
        Budget { share, vsock }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_what_another_needs() {
        for (all, (shares, vsocks, networks), (share, vsock)) in [
            // What a shell gives: a network, a share and a socket device.
            (1024, (1, 1, 384), (192, 192)),
            (1024, (2, 0, 0), (384, MOST_CONNECTIONS)),
            (1024, (0, 1, 0), (768, 768)),
            (1 << 20, (1, 1, 384), (MOST_OF_SHARE, MOST_CONNECTIONS)),
            (4096, (1, 1, 0), (2816, 1024)),
            (64, (1, 1, 384), (LEAST_OF_SHARE, LEAST_OF_VSOCK)),
            (usize::MAX, (1, 2, 0), (MOST_OF_SHARE, MOST_CONNECTIONS)),
        ] {
            let needs = Needs { shares, vsocks, networks };
            let budget = Budget::divided(all, needs);
            // What there is none of has what it would have.
            let share = if shares == 0 { budget.share } else { share };
            let vsock = if vsocks == 0 { budget.vsock } else { vsock };
            assert_eq!(budget, Budget { share, vsock }, "{all} {needs:?}");
            let taken = budget.share * shares + budget.vsock * vsocks + networks + REST;
            assert!(taken <= all || all == 64, "{all} {needs:?}");
        }
    }
}
