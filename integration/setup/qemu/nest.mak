# The devices of the nest's QEMU (../qemu.sh), for --with-devices-x86_64: what integration/src/nest.rs and
# integration/src/qemu_cores.rs ask for, and what that selects.
CONFIG_Q35=y
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_SERIAL=y
