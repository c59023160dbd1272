# The static program and nothing else (README.md). For aarch64: --build-arg ISA=aarch64.
FROM scratch
ARG ISA=x86_64
# If this file is not found: run `make build` first, which makes it, without CARGO_TARGET_DIR.
COPY target/${ISA}-unknown-linux-musl/release/vmm /usr/bin/vmm
ENTRYPOINT ["/usr/bin/vmm"]
