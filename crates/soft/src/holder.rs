//! Who holds UDP port 4791, for the people who need it.

use std::fmt::Write;
use std::fs;
use std::path::Path;

/// What to say to somebody who cannot have `port`: who holds it, and what to do.
pub(crate) fn describe(port: u16) -> String {
    if Path::new("/sys/module/rdma_rxe").exists() {
        return format!(
            "the kernel's soft-RoCE (module rdma_rxe) holds UDP port {port}: use its device instead of `soft`, or \
             unload it (rmmod rdma_rxe)"
        );
    }
    let mut found = String::new();
    for (protocol, table) in [("udp", "/proc/net/udp"), ("udp6", "/proc/net/udp6")] {
        for inode in fs::read_to_string(table).map(|text| inodes(&text, port)).unwrap_or_default() {
            let who = process(inode).map_or_else(
                || format!("a process of another user (socket inode {inode})"),
                |it| it.to_string(),
            );
            let separator = if found.is_empty() { "" } else { ", " };
            let _ = write!(found, "{separator}{who} ({protocol})");
        }
    }
    if found.is_empty() {
        return format!(
            "UDP port {port} is held, but by no process of this network namespace: the kernel's soft-RoCE may be \
             loaded (lsmod | grep rdma_rxe); use its device, or unload it"
        );
    }
    format!("UDP port {port} is held by {found}: end it, or let it serve the peers that need {port}")
}

/// A process.
struct Process {
    id: u32,
    name: String,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({})", self.id, self.name)
    }
}

/// The inodes of the sockets bound to `port` in /proc/net/udp or udp6 (proc_net_udp(5)): local address and port in
/// hexadecimal are the second field, the inode is the tenth.
fn inodes(table: &str, port: u16) -> Vec<u64> {
    let line = |line: &str| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let (_, local) = fields.get(1)?.rsplit_once(':')?;
        let inode = fields.get(9)?.parse().ok()?;
        (u16::from_str_radix(local, 16).ok()? == port).then_some(inode)
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// Whose descriptors include the socket, as far as we may look.
fn process(inode: u64) -> Option<Process> {
    let wanted = format!("socket:[{inode}]");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let id: u32 = entry.file_name().to_str()?.parse().ok()?;
        let descriptors = fs::read_dir(entry.path().join("fd")).ok()?;
        let holds = |link: fs::DirEntry| {
            fs::read_link(link.path()).is_ok_and(|target| target.to_str() == Some(wanted.as_str()))
        };
        descriptors.flatten().any(holds).then(|| {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            Process { id, name: name.trim().to_owned() }
        })
    })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_holder_is_named() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let told = describe(port);
        if Path::new("/sys/module/rdma_rxe").exists() {
            assert!(told.contains("rdma_rxe"), "{told}");
        } else {
            assert!(told.contains(&format!("process {}", std::process::id())), "{told}");
        }
        assert!(told.contains(&port.to_string()));
    }

    #[test]
    fn the_table_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
             1: 00000000:12B7 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4242 2 0 0\n\
             2: 0100007F:12B8 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 7 2 0 0\n\
             broken\n";
        assert_eq!(
            (inodes(table, 4791), inodes(table, 4792), inodes(table, 1)),
            (vec![4242], vec![7], vec![])
        );
    }
}
