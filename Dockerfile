# The static program and nothing else; `make build` makes it (README.md). For aarch64: --build-arg ISA=aarch64.
FROM scratch
ARG ISA=x86_64
COPY target/${ISA}-unknown-linux-musl/release/vmm /usr/bin/vmm
ENTRYPOINT ["/usr/bin/vmm"]
