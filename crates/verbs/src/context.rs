//! An opened device of libibverbs, and the list of those there are.

use std::ffi::c_int;
use std::ptr::NonNull;

use rdma_sys::{
    _compat_ibv_port_attr, ibv_comp_channel, ibv_context, ibv_device, ibv_device_attr, ibv_gid_entry, ibv_pd,
    ibv_port_attr,
};
use secure_rdma_rdma::{Error, ErrorCode, Result};

use crate::errno;
use crate::library::{self, Verbs};

/// `ibv_get_device_list`, freed when dropped.
pub(crate) struct DeviceList {
    verbs: &'static Verbs,
    list: *mut *mut ibv_device,
    length: usize,
}

impl DeviceList {
    /// Asks the library. A kernel without RDMA (ENOSYS) has no devices, which is no error.
    pub(crate) fn get(verbs: &'static Verbs) -> Result<Self> {
        let mut length: c_int = 0;
        // SAFETY: `length` is a valid place for the number.
        let list = unsafe { (verbs.ibv_get_device_list)(&raw mut length) };
        if list.is_null() {
            let errno = errno::last();
            if errno != libc::ENOSYS {
                let what = "the RDMA devices cannot be listed";
                return Err(errno::error(ErrorCode::DeviceOpen, what, "ibv_get_device_list", errno));
            }
            length = 0;
        }
        Ok(Self { verbs, list, length: usize::try_from(length).unwrap_or(0) })
    }

    /// The devices, in the library's order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = ListedDevice<'_>> {
        (0..self.length).filter_map(|index| {
            // SAFETY: the library wrote `length` entries, and `index` is below that.
            let entry = unsafe { self.list.add(index) };
            // SAFETY: the entry is one of those that the library wrote.
            let entry = unsafe { entry.read() };
            // SAFETY: an entry points to a device that lives as long as the list.
            unsafe { entry.as_ref() }.map(|device| ListedDevice { verbs: self.verbs, device })
        })
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        if !self.list.is_null() {
            // SAFETY: the list came from ibv_get_device_list and is freed once.
            unsafe { (self.verbs.ibv_free_device_list)(self.list) };
        }
    }
}

/// A device of the list, not opened.
pub(crate) struct ListedDevice<'a> {
    verbs: &'static Verbs,
    device: &'a ibv_device,
}

impl ListedDevice<'_> {
    /// `rxe0`, `mlx5_0`.
    pub(crate) fn name(&self) -> String {
        library::text(&self.device.name)
    }

    /// The name below /dev/infiniband: `uverbs0`.
    pub(crate) fn node(&self) -> String {
        library::text(&self.device.dev_name)
    }

    /// `enum ibv_transport_type`: 0 is InfiniBand and RoCE, 1 iWARP.
    pub(crate) fn transport(&self) -> c_int {
        self.device.transport_type
    }

    /// Opens it.
    pub(crate) fn open(&self) -> Result<Context> {
        let device = std::ptr::from_ref(self.device).cast_mut();
        // SAFETY: the device belongs to a list that is not freed yet.
        let context = unsafe { (self.verbs.ibv_open_device)(device) };
        NonNull::new(context).map(|context| Context { verbs: self.verbs, context }).ok_or_else(|| {
            let errno = errno::last();
            let name = self.name();
            let node = self.node();
            let remedy = match errno {
                libc::EACCES | libc::EPERM => {
                    format!(": this user may not open /dev/infiniband/{node} (group rdma, or a udev rule)")
                }
                libc::ENOENT | libc::ENODEV | libc::ENXIO => {
                    format!(": there is no /dev/infiniband/{node} (in a container: pass the device in)")
                }
                _ => ". The kernel's log may say why".to_owned(),
            };
            let message = format!("{name} cannot be opened: {}{remedy}", errno::text(errno));
            Error::new(ErrorCode::DeviceOpen, message).with_syscall("ibv_open_device", errno)
        })
    }
}

/// An open context, closed when dropped.
pub(crate) struct Context {
    verbs: &'static Verbs,
    context: NonNull<ibv_context>,
}

// SAFETY: libibverbs is thread-safe, and a context is not tied to a thread.
unsafe impl Send for Context {}
// SAFETY: libibverbs is thread-safe.
unsafe impl Sync for Context {}

impl Context {
    /// The function table.
    pub(crate) fn verbs(&self) -> &'static Verbs {
        self.verbs
    }

    /// The context, valid as long as `self`.
    pub(crate) fn raw(&self) -> *mut ibv_context {
        self.context.as_ptr()
    }

    /// The descriptor of asynchronous events.
    pub(crate) fn async_fd(&self) -> c_int {
        // SAFETY: the context is open.
        unsafe { self.context.as_ref() }.async_fd
    }

    /// What the device can do.
    pub(crate) fn attributes(&self) -> Result<ibv_device_attr> {
        // SAFETY: the structure holds numbers only, for which zero is a value.
        let mut attributes: ibv_device_attr = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open, and `attributes` is a valid place.
        let answer = unsafe { (self.verbs.ibv_query_device)(self.raw(), &raw mut attributes) };
        match errno::of(answer) {
            None => Ok(attributes),
            Some(errno) => {
                let what = "the device does not tell what it can do";
                Err(errno::error(ErrorCode::DeviceOpen, what, "ibv_query_device", errno))
            }
        }
    }

    /// What a port is like now.
    pub(crate) fn port(&self, number: u8) -> Result<ibv_port_attr> {
        // SAFETY: the structure holds numbers only, for which zero is a value.
        let mut port: ibv_port_attr = unsafe { std::mem::zeroed() };
        // The exported function fills the structure up to `flags`, as `_compat_ibv_port_attr` says; the inline one
        // that knows the rest would link to it.
        let place = (&raw mut port).cast::<_compat_ibv_port_attr>();
        // SAFETY: the context is open, and the structure begins with the one that the function fills.
        let answer = unsafe { (self.verbs.ibv_query_port)(self.raw(), number, place) };
        match errno::of(answer) {
            None => Ok(port),
            Some(errno) => {
                let what = format!("port {number} does not tell its state");
                Err(errno::error(ErrorCode::DeviceOpen, &what, "ibv_query_port", errno))
            }
        }
    }

    /// The GID tables of all ports in one call, with `room` for entries; empty ones are left out. `None` where library
    /// or kernel cannot.
    pub(crate) fn gids(&self, room: usize) -> Option<Vec<ibv_gid_entry>> {
        let query = library::query_gid_table()?;
        let mut entries: Vec<ibv_gid_entry> = Vec::with_capacity(room);
        // SAFETY: the context is open, and there is room for that many entries of that size.
        let count = unsafe { query(self.raw(), entries.as_mut_ptr(), room, 0, size_of::<ibv_gid_entry>()) };
        let count = usize::try_from(count).ok().filter(|count| *count <= room)?;
        // SAFETY: the library has filled the first `count` entries.
        unsafe { entries.set_len(count) };
        Some(entries)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is open, and everything made from it is gone.
        unsafe { (self.verbs.ibv_close_device)(self.raw()) };
    }
}

/// A context with the one protection domain and the one completion channel that a device has here.
pub(crate) struct Domain {
    // Dropped by hand in the order channel, domain, context.
    channel: NonNull<ibv_comp_channel>,
    domain: NonNull<ibv_pd>,
    context: Context,
}

// SAFETY: libibverbs is thread-safe, and neither object is tied to a thread.
unsafe impl Send for Domain {}
// SAFETY: libibverbs is thread-safe.
unsafe impl Sync for Domain {}

impl Domain {
    /// Makes both.
    pub(crate) fn make(context: Context) -> Result<Self> {
        let verbs = context.verbs();
        let failed = |what: &str, syscall| {
            let errno = errno::last();
            errno::error(ErrorCode::Resource, &format!("the device gives no {what}"), syscall, errno)
        };
        // SAFETY: the context is open.
        let domain = unsafe { (verbs.ibv_alloc_pd)(context.raw()) };
        let Some(domain) = NonNull::new(domain) else {
            return Err(failed("protection domain", "ibv_alloc_pd"));
        };
        // SAFETY: the context is open.
        let channel = unsafe { (verbs.ibv_create_comp_channel)(context.raw()) };
        let Some(channel) = NonNull::new(channel) else {
            let error = failed("completion channel", "ibv_create_comp_channel");
            // SAFETY: the domain was made just above, and nothing uses it.
            unsafe { (verbs.ibv_dealloc_pd)(domain.as_ptr()) };
            return Err(error);
        };
        Ok(Self { channel, domain, context })
    }

    /// The context.
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// The protection domain, valid as long as `self`.
    pub(crate) fn domain(&self) -> *mut ibv_pd {
        self.domain.as_ptr()
    }

    /// The completion channel, valid as long as `self`.
    pub(crate) fn channel(&self) -> *mut ibv_comp_channel {
        self.channel.as_ptr()
    }

    /// The channel's descriptor.
    pub(crate) fn channel_fd(&self) -> c_int {
        // SAFETY: the channel lives as long as `self`.
        unsafe { self.channel.as_ref() }.fd
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        let verbs = self.context.verbs();
        // SAFETY: every completion queue of the channel is destroyed: the service thread does so before it ends.
        unsafe { (verbs.ibv_destroy_comp_channel)(self.channel()) };
        // SAFETY: everything in the domain holds the device, and so is gone.
        unsafe { (verbs.ibv_dealloc_pd)(self.domain()) };
    }
}
