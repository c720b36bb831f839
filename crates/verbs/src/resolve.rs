//! `hybrid` addressing: RDMA CM's address and route resolution, and nothing more of it.
//!
//! `rdma_resolve_addr` and `rdma_resolve_route` ask the kernel for the device, the route and the neighbour; no
//! packet of the connection manager is sent. The id's context and protection domain are librdmacm's own: only
//! the device's name, the port and the path record are read from it.

use std::ffi::CString;
use std::io;
use std::net::IpAddr;
use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

use rdma_sys::{rdma_cm_event_type, rdma_cm_id, rdma_event_channel, rdma_port_space};
use secure_rdma_rdma::{Error, ErrorCode, Gid, LocalAddress, PathMtu, Result};

use crate::errno;
use crate::library::{self, Loaded, RdmaCm};

/// How long the kernel may look for the address, and then for the route.
const STEP: Duration = Duration::from_secs(2);

/// How much longer than that its answer may take to reach us.
const GRACE: Duration = Duration::from_millis(500);

/// The device node of the connection manager.
const NODE: &str = "/dev/infiniband/rdma_cm";

/// What a path record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) service_level: u8,
    pub(crate) flow_label: u32,
    pub(crate) traffic_class: u8,
    /// `None` where the record says 0.
    pub(crate) hop_limit: Option<u8>,
    pub(crate) mtu: Option<PathMtu>,
}

/// The outcome.
pub(crate) enum Resolved {
    /// A path over our device and port.
    Path(Path),
    /// There is no connection manager to ask; why, for people.
    Unavailable(String),
}

/// Asks for the path from `local` to `peer`. **Blocks** for at most 5 s.
pub(crate) fn resolve(local: &LocalAddress, peer: Gid) -> Result<Resolved> {
    let cm = match library::rdma_cm() {
        Loaded::Ready(cm) => cm,
        Loaded::Absent(_) => return Ok(Resolved::Unavailable("librdmacm is not installed".to_owned())),
        Loaded::TooOld(why) => return Ok(Resolved::Unavailable(format!("librdmacm is too old ({why})"))),
    };
    if let Err(cause) = std::fs::OpenOptions::new().read(true).write(true).open(NODE) {
        let why = match cause.kind() {
            io::ErrorKind::NotFound => format!("there is no {NODE} (kernel module rdma_ucm)"),
            _ => format!("{NODE} cannot be opened: {cause}"),
        };
        return Ok(Resolved::Unavailable(why));
    }
    let id = match Id::make(cm) {
        Ok(id) => id,
        Err(why) => return Ok(Resolved::Unavailable(why)),
    };
    let milliseconds = i32::try_from(STEP.as_millis()).unwrap_or(i32::MAX);
    let mut source = SocketAddress::new(local.gid.to_ip(), local.interface.as_deref());
    let mut destination = SocketAddress::new(peer.to_ip(), local.interface.as_deref());
    let unreachable = |syscall, errno: i32| {
        let what = match errno {
            libc::ETIMEDOUT => "nobody answers for it. Is it up, and on the RDMA network?".to_owned(),
            libc::ENETUNREACH | libc::EHOSTUNREACH => {
                "the kernel has no route or neighbour for it (ip route get, ip neighbour)".to_owned()
            }
            libc::ENODEV => "no RDMA device is on its route: connect over an address of one".to_owned(),
            _ => errno::text(errno),
        };
        let (from, to) = (local.gid.to_ip(), peer.to_ip());
        Error::new(
            ErrorCode::Unreachable,
            format!("the peer's address {to} does not resolve from {from} ({}): {what}", local.device),
        )
        .with_syscall(syscall, errno)
    };

    // SAFETY: the id is alive, and both addresses are valid for the call.
    let asked = unsafe {
        (cm.rdma_resolve_addr)(id.raw(), source.as_mut_ptr(), destination.as_mut_ptr(), milliseconds)
    };
    id.outcome(asked, rdma_cm_event_type::RDMA_CM_EVENT_ADDR_RESOLVED)
        .map_err(|errno| unreachable("rdma_resolve_addr", errno))?;
    id.check_device(local, peer)?;
    // SAFETY: the id is alive.
    let asked = unsafe { (cm.rdma_resolve_route)(id.raw(), milliseconds) };
    id.outcome(asked, rdma_cm_event_type::RDMA_CM_EVENT_ROUTE_RESOLVED)
        .map_err(|errno| unreachable("rdma_resolve_route", errno))?;
    let path = id.path().ok_or_else(|| unreachable("rdma_resolve_route", libc::ENODATA))?;
    Ok(Resolved::Path(path))
}

/// An id with the event channel that it alone uses; both end when it is dropped.
struct Id {
    cm: &'static RdmaCm,
    channel: NonNull<rdma_event_channel>,
    id: *mut rdma_cm_id,
}

impl Id {
    fn make(cm: &'static RdmaCm) -> Result<Self, String> {
        // SAFETY: the function takes nothing.
        let channel = unsafe { (cm.rdma_create_event_channel)() };
        let Some(channel) = NonNull::new(channel) else {
            return Err(format!("rdma_create_event_channel says {}", errno::text(errno::last())));
        };
        let mut made = Self { cm, channel, id: ptr::null_mut() };
        let space = rdma_port_space::RDMA_PS_TCP;
        // SAFETY: the channel is open, and `made.id` is a valid place.
        let answer =
            unsafe { (cm.rdma_create_id)(channel.as_ptr(), &raw mut made.id, ptr::null_mut(), space) };
        if answer != 0 || made.id.is_null() {
            made.id = ptr::null_mut();
            return Err(format!("rdma_create_id says {}", errno::text(errno::last())));
        }
        Ok(made)
    }

    fn raw(&self) -> *mut rdma_cm_id {
        self.id
    }

    /// Waits for the event that ends a step; the errno otherwise.
    fn outcome(&self, asked: i32, wanted: rdma_cm_event_type::Type) -> Result<(), i32> {
        if asked != 0 {
            return Err(errno::last());
        }
        self.wait(Instant::now() + STEP + GRACE)?;
        let mut event = ptr::null_mut();
        // SAFETY: the channel is open, and `event` is a valid place.
        if unsafe { (self.cm.rdma_get_cm_event)(self.channel.as_ptr(), &raw mut event) } != 0 {
            return Err(errno::last());
        }
        // SAFETY: the event was taken just above and is not acknowledged yet.
        let told = unsafe { &*event };
        let (kind, status) = (told.event, told.status);
        // SAFETY: as above, and nothing of it is read any more.
        unsafe { (self.cm.rdma_ack_cm_event)(event) };
        match (kind == wanted, status) {
            (true, 0) => Ok(()),
            (_, 0) => Err(libc::EPROTO),
            (_, status) => Err(status.saturating_abs()),
        }
    }

    fn wait(&self, deadline: Instant) -> Result<(), i32> {
        // SAFETY: the channel is open.
        let fd = unsafe { self.channel.as_ref() }.fd;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let milliseconds = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            let mut descriptor = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            // SAFETY: there is one descriptor.
            match unsafe { libc::poll(&raw mut descriptor, 1, milliseconds) } {
                0 => return Err(libc::ETIMEDOUT),
                1.. => return Ok(()),
                _ if errno::last() == libc::EINTR => {}
                _ => return Err(errno::last()),
            }
        }
    }

    /// Whether the kernel's route leaves by our device and port.
    fn check_device(&self, local: &LocalAddress, peer: Gid) -> Result<()> {
        // SAFETY: the id is alive.
        let id = unsafe { &*self.id };
        let port = id.port_num;
        // SAFETY: the context is librdmacm's and lives as long as the id; it is null where none was chosen.
        let device = unsafe { id.verbs.as_ref() }.map(|context| context.device);
        // SAFETY: an open context has a device.
        let name =
            device.and_then(|device| unsafe { device.as_ref() }).map(|device| library::text(&device.name));
        if name.as_deref() == Some(local.device.as_str()) && port == local.port {
            return Ok(());
        }
        let there = name.map_or_else(|| "no RDMA device".to_owned(), |name| format!("{name} port {port}"));
        Err(Error::new(
            ErrorCode::Unreachable,
            format!(
                "the route from {} to {} leaves by {there}, and the queue pair is on {} port {}: choose that device, \
                 or the address of its interface",
                local.gid.to_ip(),
                peer.to_ip(),
                local.device,
                local.port
            ),
        ))
    }

    fn path(&self) -> Option<Path> {
        // SAFETY: the id is alive.
        let route = unsafe { &(*self.id).route };
        if route.num_paths < 1 {
            return None;
        }
        // SAFETY: the id holds that many records, and this is the first.
        let record = unsafe { route.path_rec.as_ref() }?;
        Some(Path {
            service_level: record.sl & 0xF,
            flow_label: u32::from_be(record.flow_label) & 0xF_FFFF,
            traffic_class: record.traffic_class,
            hop_limit: (record.hop_limit != 0).then_some(record.hop_limit),
            mtu: PathMtu::from_code(record.mtu & 0x3F),
        })
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        if !self.id.is_null() {
            // SAFETY: the id was made by rdma_create_id, and all its events are acknowledged.
            unsafe { (self.cm.rdma_destroy_id)(self.id) };
        }
        // SAFETY: the channel is open, and its only id is gone.
        unsafe { (self.cm.rdma_destroy_event_channel)(self.channel.as_ptr()) };
    }
}

/// An address as sockets take it.
enum SocketAddress {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl SocketAddress {
    /// The address; a link-local one with the scope of `interface`.
    fn new(address: IpAddr, interface: Option<&str>) -> Self {
        match address {
            IpAddr::V4(v4) => {
                // SAFETY: the structure holds numbers only, for which zero is a value.
                let mut raw: libc::sockaddr_in = unsafe { std::mem::zeroed() };
                raw.sin_family = family(libc::AF_INET);
                raw.sin_addr.s_addr = u32::from(v4).to_be();
                Self::V4(raw)
            }
            IpAddr::V6(v6) => {
                // SAFETY: the structure holds numbers only, for which zero is a value.
                let mut raw: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
                raw.sin6_family = family(libc::AF_INET6);
                raw.sin6_addr.s6_addr = v6.octets();
                if v6.is_unicast_link_local() {
                    raw.sin6_scope_id = interface.map_or(0, scope);
                }
                Self::V6(raw)
            }
        }
    }

    fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        match self {
            Self::V4(raw) => (&raw mut *raw).cast(),
            Self::V6(raw) => (&raw mut *raw).cast(),
        }
    }
}

fn family(number: i32) -> libc::sa_family_t {
    libc::sa_family_t::try_from(number).unwrap_or_default()
}

fn scope(interface: &str) -> u32 {
    let Ok(name) = CString::new(interface) else { return 0 };
    // SAFETY: `name` is a C string.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_take_the_form_of_sockets() {
        let SocketAddress::V4(v4) = SocketAddress::new("10.8.0.1".parse().unwrap(), Some("lo")) else {
            unreachable!()
        };
        assert_eq!(v4.sin_addr.s_addr.to_ne_bytes(), [10, 8, 0, 1]);
        let of = |text: &str| match SocketAddress::new(text.parse().unwrap(), Some("lo")) {
            SocketAddress::V6(v6) => v6,
            SocketAddress::V4(_) => unreachable!(),
        };
        assert_eq!(of("fd08::1").sin6_scope_id, 0, "global addresses have no scope");
        assert_eq!(of("fe80::1").sin6_scope_id, scope("lo"));
        assert_ne!(scope("lo"), 0);
    }
}
