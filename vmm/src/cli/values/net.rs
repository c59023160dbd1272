//! Networks: `none`, `user[,...]`, `tap=NAME[,mac=...]`.

use crate::machine::config::{LinkConfig, Mac, NetConfig, NetStack, UserNetConfig};

/// What `--net` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetChoice(pub Option<NetConfig>);

/// Parses a network.
///
/// # Errors
/// What has to be written.
pub fn net(text: &str) -> Result<NetChoice, String> {
    let mut words = text.split(',');
    let kind = words.next().unwrap_or_default();
    let (mut mac, mut user) = (None, UserNetConfig::default());
    let is_user = kind == "user";
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("mac", value) if kind != "none" => mac = Some(address(value)?),
            ("hostfwd", value) if is_user => {
                let forward: net::Forward = value.parse()?;
                let is_there = |it: &net::Forward| (it.protocol, it.host) == (forward.protocol, forward.host);
                if user.forwards.iter().any(is_there) {
                    return Err(format!("'{value}': the host's port leads somewhere already"));
                }
                user.forwards.push(forward);
            }
            ("host-loopback", "") if is_user => user.host_loopback = true,
            ("stack", "own") if is_user => user.stack = NetStack::Own,
            ("stack", "passt") if is_user => user.stack = NetStack::Passt,
            _ => return Err(format!("'{word}' cannot stand behind {kind}: {}", usage(kind))),
        }
    }
    let link = match (kind, kind.split_once('=')) {
        ("none", _) => return Ok(NetChoice(None)),
        ("user", _) => LinkConfig::User(user),
        (_, Some(("tap", name))) if is_interface(name) => LinkConfig::Tap(name.into()),
        _ => return Err(format!("'{kind}' is no network: {}", usage(kind))),
    };
    Ok(NetChoice(Some(NetConfig { link, mac })))
}

/// What can be written.
fn usage(kind: &str) -> &'static str {
    match kind {
        "user" => {
            "write user,hostfwd=tcp:2222-:22 (more than once), host-loopback, stack=own or passt, mac=52:54:00:12:34:56"
        }
        _ if kind.starts_with("tap") => "write tap=tap0, with ,mac=52:54:00:12:34:56 if you like",
        _ => "write none, user, or tap=NAME",
    }
}

/// What can be an interface's name (`dev_valid_name` of the kernel's).
fn is_interface(name: &str) -> bool {
    const LONGEST: usize = 15;
    let is_good = |it: char| it.is_ascii_graphic() && it != '/' && it != ':' && it != '%';
    (1..=LONGEST).contains(&name.len()) && name != "." && name != ".." && name.chars().all(is_good)
}

/// Parses an address of Ethernet's, of one interface.
fn address(text: &str) -> Result<Mac, String> {
    const GROUP: u8 = 1;
    let wrong =
        || format!("'{text}' is no address of one interface: write for example mac=52:54:00:12:34:56");
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| (1..=2).contains(&part.len())).ok_or_else(wrong)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
    }
    let is_good = parts.next().is_none() && mac[0] & GROUP == 0 && mac != [0; 6];
    is_good.then_some(mac).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let user = |forwards: &[&str], host_loopback, stack| {
            let forwards = forwards.iter().map(|it| it.parse().unwrap()).collect();
            LinkConfig::User(UserNetConfig { forwards, host_loopback, stack })
        };
        let mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
        for (text, link, mac) in [
            ("user", user(&[], false, NetStack::Found), None),
            (
                "user,hostfwd=tcp::2222-:22,hostfwd=udp:0.0.0.0:2222-:53,stack=own",
                user(&["tcp:127.0.0.1:2222-:22", "udp:0.0.0.0:2222-:53"], false, NetStack::Own),
                None,
            ),
            (
                "user,host-loopback,stack=passt,mac=52:54:0:12:34:56",
                user(&[], true, NetStack::Passt),
                Some(mac),
            ),
            ("tap=tap0,mac=52:54:00:12:34:56", LinkConfig::Tap("tap0".into()), Some(mac)),
        ] {
            assert_eq!(net(text), Ok(NetChoice(Some(NetConfig { link, mac }))), "{text}");
        }
        assert_eq!(net("none"), Ok(NetChoice(None)));
        for (text, says) in [
            ("", "write none, user, or tap=NAME"),
            ("bridge", "write none, user, or tap=NAME"),
            ("none,mac=2:0:0:0:0:1", "cannot stand behind none"),
            ("tap", "write tap=tap0"),
            ("tap=", "write tap=tap0"),
            ("tap=a/b", "write tap=tap0"),
            ("tap=0123456789012345", "write tap=tap0"),
            ("tap=t,host-loopback", "write tap=tap0"),
            ("user,hostfwd=tcp:1", "write tcp:2222-:22"),
            ("user,hostfwd=tcp:1-:1,hostfwd=tcp:1-:2", "leads somewhere already"),
            ("user,host-loopback=yes", "cannot stand behind user"),
            ("user,stack=slirp", "stack=own or passt"),
            ("user,mac=52:54:00:12:34", "no address of one interface"),
            ("user,mac=53:54:00:12:34:56", "no address of one interface"),
            ("user,mac=+2:54:00:12:34:56:", "no address of one interface"),
        ] {
            assert!(net(text).is_err_and(|error| error.contains(says)), "{text}: {:?}", net(text));
        }
    }
}
