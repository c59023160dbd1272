//! What is said over a guest's control socket, by a client and by a monitor that may say anything.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use vmm::control::protocol::{Request, Response};

/// Lines of either end. What is understood is said again, and understood alike.
pub fn requests(data: &[u8]) {
    for line in data.split(|byte| *byte == b'\n') {
        again::<Request>(line);
        again::<Response>(line);
    }
}

fn again<T: Serialize + DeserializeOwned + Debug>(line: &[u8]) {
    let Ok(understood) = serde_json::from_slice::<T>(line) else { return };
    let said = serde_json::to_string(&understood).expect("what was said can be said again");
    assert!(!said.contains('\n'), "{said:?} is more than a line");
    let again: T = serde_json::from_str(&said).expect("and is understood");
    assert_eq!(format!("{understood:?}"), format!("{again:?}"));
}
