//! A shared folder, by a guest that asks for anything.

use share::{Access, Limits, Server};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder with another in it that is shared, which goes with it.
struct Outer(PathBuf);

impl Outer {
    fn new() -> std::io::Result<Outer> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vmm-fuzz-share-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let outer = Outer(std::env::temp_dir().join(name));
        fs::create_dir_all(outer.0.join("shared/d"))?;
        fs::write(outer.0.join("canary"), "sings")?;
        fs::write(outer.0.join("shared/f"), "12345")?;
        symlink("../canary", outer.0.join("shared/l"))?;
        symlink("..", outer.0.join("shared/d/u"))?;
        Ok(outer)
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// A request: 40 bytes of header, and what is behind it.
fn request(operation: u8, node: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(40 + payload.len()).unwrap_or(0).to_le_bytes().to_vec();
    bytes.extend(u32::from(operation).to_le_bytes());
    bytes.extend(7u64.to_le_bytes());
    bytes.extend(u64::from(node).to_le_bytes());
    bytes.resize(40, 0);
    bytes.extend(payload);
    bytes
}

/// Requests, each an operation, a node, and the length of what is behind the header. The first byte's lowest bit
/// chooses whether the guest may write.
pub fn shares(data: &[u8]) {
    const INIT: u8 = 26;
    const FALLOCATE: u8 = 43;
    let Some((choice, mut data)) = data.split_first() else { return };
    let access = if choice & 1 == 0 { Access::ReadWrite } else { Access::ReadOnly };
    // Without a folder there is nothing to fuzz.
    let Ok(outer) = Outer::new() else { return };
    let limits = Limits { nodes: 50, descriptors: 16 };
    let Ok(mut server) = Server::new(&outer.0.join("shared"), access, limits) else { return };
    let mut reply = vec![0; 8192];
    let mut begin = request(INIT, 0, &[0; 16]);
    (begin[40], begin[44]) = (7, 38);
    server.serve(&begin, &mut reply);
    while let [operation, node, length, rest @ ..] = data {
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        data = rest;
        let mut payload = payload.to_vec();
        if *operation == FALLOCATE {
            // The host's disk is not to be filled.
            payload.iter_mut().skip(18).take(6).for_each(|byte| *byte = 0);
        }
        let size = server.serve(&request(*operation, *node, &payload), &mut reply);
        assert!(size.is_none_or(|size| (16..=reply.len()).contains(&size)));
        let (nodes, _, descriptors) = server.load();
        assert!(nodes <= 50 && descriptors <= 16, "{:?}", server.load());
    }
    drop(server);
    assert!(fs::read(outer.0.join("canary")).is_ok_and(|text| text == b"sings"));
    let beside = fs::read_dir(&outer.0).map_or(0, Iterator::count);
    assert_eq!(beside, 2);
    if access == Access::ReadOnly {
        assert!(fs::read(outer.0.join("shared/f")).is_ok_and(|text| text == b"12345"));
    }
}
