//! Interrupt controllers.

/// Version of the interrupt controller that the host's KVM emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GicVersion {
    /// One distributor, one banked CPU interface, at most eight vCPUs.
    V2,
    /// One distributor, a redistributor for each vCPU.
    V3,
}
