//! What sysfs tells: single GIDs with type and interface, and whole tables where library or kernel is too old to tell
//! them in one call.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use secure_rdma_rdma::{Counter, Gid, GidEntry, GidKind};

/// The folder of the RDMA devices.
pub(crate) const DEVICES: &str = "/sys/class/infiniband";

/// GIDs of a port that are looked at: as many as a GID index can name.
const MAX_GIDS: i32 = 256;

/// `ARPHRD_INFINIBAND`: the type of an IPoIB interface.
const IPOIB: &str = "32";

/// One port in sysfs.
pub(crate) struct Port {
    device: PathBuf,
    number: u8,
}

impl Port {
    /// A port of the device of that name below `root`.
    pub(crate) fn new(root: &Path, device: &str, number: u8) -> Self {
        Self { device: root.join(device), number }
    }

    fn read(&self, file: &str) -> Option<String> {
        let path = self.device.join(format!("ports/{}/{file}", self.number));
        Some(fs::read_to_string(path).ok()?.trim().to_owned())
    }

    /// The GID table of `length` entries, empty entries left out.
    pub(crate) fn gids(&self, length: i32) -> Vec<GidEntry> {
        (0..length.min(MAX_GIDS)).filter_map(|index| self.gid(u8::try_from(index).ok()?)).collect()
    }

    /// One entry of the GID table, or nothing where it is empty.
    pub(crate) fn gid(&self, index: u8) -> Option<GidEntry> {
        let address: Ipv6Addr = self.read(&format!("gids/{index}"))?.parse().ok()?;
        let gid = Gid::new(address.octets());
        if gid.is_unspecified() {
            return None;
        }
        let kind = match self.read(&format!("gid_attrs/types/{index}")).as_deref() {
            Some("RoCE v2") => GidKind::RoceV2,
            _ => GidKind::InfinibandOrRoceV1,
        };
        let interface = self.read(&format!("gid_attrs/ndevs/{index}")).filter(|name| !name.is_empty());
        Some(GidEntry { index, gid, kind, interface, mtu: None })
    }

    /// What device and port count, by the names of their files. A counter that the device does not have, which the kernel
    /// shows as an error or as text, is left out.
    pub(crate) fn counters(&self) -> Vec<Counter> {
        let mut found: BTreeMap<String, u64> = BTreeMap::new();
        for folder in ["counters", "hw_counters"] {
            let path = self.device.join(format!("ports/{}/{folder}", self.number));
            let Ok(files) = fs::read_dir(path) else { continue };
            for name in files.filter_map(|file| file.ok()?.file_name().into_string().ok()) {
                // How long the kernel keeps a value, in milliseconds: a setting among the counters.
                if name == "lifespan" {
                    continue;
                }
                if let Some(value) = self.read(&format!("{folder}/{name}")).and_then(|text| text.parse().ok())
                {
                    found.insert(name, value);
                }
            }
        }
        found.into_iter().map(|(name, value)| (name.into(), value)).collect()
    }

    /// The IPoIB interfaces of the port.
    pub(crate) fn ipoib_interfaces(&self) -> Vec<String> {
        let Ok(interfaces) = fs::read_dir(self.device.join("device/net")) else { return Vec::new() };
        let mut names: Vec<_> = interfaces
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let file = |name| fs::read_to_string(entry.path().join(name)).ok();
                let ipoib = file("type")?.trim() == IPOIB;
                let port = file("dev_port")?.trim().parse::<u8>().ok()?.checked_add(1)?;
                (ipoib && port == self.number).then(|| entry.file_name().to_string_lossy().into_owned())
            })
            .collect();
        names.sort();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("secure-rdma-sysfs-{}-{name}", std::process::id()));
            Self(root)
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_gid_table_is_read_without_its_empty_entries() {
        let tree = Tree::new("gids");
        let port = "rxe0/ports/1";
        tree.write(&format!("{port}/gids/0"), "fe80:0000:0000:0000:d4b0:9fff:fe75:2014\n");
        tree.write(&format!("{port}/gid_attrs/types/0"), "IB/RoCE v1\n");
        tree.write(&format!("{port}/gids/1"), "0000:0000:0000:0000:0000:0000:0000:0000\n");
        tree.write(&format!("{port}/gids/2"), "0000:0000:0000:0000:0000:ffff:0a08:0001\n");
        tree.write(&format!("{port}/gid_attrs/types/2"), "RoCE v2\n");
        tree.write(&format!("{port}/gid_attrs/ndevs/2"), "v0\n");
        tree.write(&format!("{port}/gids/3"), "nonsense\n");
        let gids = Port::new(&tree.0, "rxe0", 1).gids(1024);
        assert_eq!(gids.iter().map(|entry| entry.index).collect::<Vec<_>>(), [0, 2]);
        assert_eq!((gids[0].kind, gids[0].interface.as_deref()), (GidKind::InfinibandOrRoceV1, None));
        assert_eq!((gids[1].kind, gids[1].interface.as_deref()), (GidKind::RoceV2, Some("v0")));
        assert_eq!(gids[1].gid, Gid::from_ip("10.8.0.1".parse().unwrap()));
    }

    #[test]
    fn counters_have_the_kernels_names_and_settings_are_none() {
        let tree = Tree::new("counters");
        for (file, text) in [
            ("hw_counters/sent_pkts", "17\n"),
            ("hw_counters/lifespan", "10\n"),
            ("hw_counters/broken", "N/A (no PMA)\n"),
            ("counters/port_rcv_data", "18446744073709551615\n"),
        ] {
            tree.write(&format!("rxe0/ports/1/{file}"), text);
        }
        let expected: Vec<Counter> = vec![("port_rcv_data".into(), u64::MAX), ("sent_pkts".into(), 17)];
        assert_eq!(Port::new(&tree.0, "rxe0", 1).counters(), expected);
        assert!(Port::new(&tree.0, "rxe0", 2).counters().is_empty());
    }

    #[test]
    fn ipoib_interfaces_are_those_of_the_port() {
        let tree = Tree::new("ipoib");
        for (name, kind, port) in [("ib0", "32\n", "0\n"), ("ib1", "32\n", "1\n"), ("eth0", "1\n", "0\n")] {
            tree.write(&format!("mlx5_0/device/net/{name}/type"), kind);
            tree.write(&format!("mlx5_0/device/net/{name}/dev_port"), port);
        }
        assert_eq!(Port::new(&tree.0, "mlx5_0", 1).ipoib_interfaces(), ["ib0"]);
        assert_eq!(Port::new(&tree.0, "mlx5_0", 2).ipoib_interfaces(), ["ib1"]);
        assert!(Port::new(&tree.0, "none", 1).ipoib_interfaces().is_empty());
    }
}
