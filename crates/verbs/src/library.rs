//! libibverbs and librdmacm, loaded at run time.
//!
//! The addon must load on machines without rdma-core, so nothing may reference a symbol of either library: types,
//! constants and the inline operations (which go through `context->ops`) come from `rdma-sys`, the exported
//! functions from the two tables here. A loaded library is never unloaded: its threads and its atfork handlers
//! outlive every device.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use libloading::Library;
use rdma_sys::{
    _compat_ibv_port_attr, ibv_comp_channel, ibv_context, ibv_cq, ibv_device, ibv_device_attr, ibv_gid_entry,
    ibv_mr, ibv_pd, ibv_qp, ibv_qp_attr, ibv_qp_init_attr, ibv_srq, ibv_srq_init_attr, rdma_cm_event,
    rdma_cm_id, rdma_event_channel, rdma_port_space,
};
use secure_rdma_rdma::{Error, ErrorCode, Result};

/// `struct ibv_async_event` with its type as a number: a library newer than our bindings may report events that
/// their enum lacks.
#[repr(C)]
pub(crate) struct RawAsyncEvent {
    pub(crate) element: RawEventElement,
    pub(crate) event_type: c_int,
}

/// What an asynchronous event is about.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) union RawEventElement {
    pub(crate) cq: *mut ibv_cq,
    pub(crate) qp: *mut ibv_qp,
    pub(crate) srq: *mut ibv_srq,
    pub(crate) port_num: c_int,
}

macro_rules! table {
    ($(#[$doc:meta])+ $name:ident { $($function:ident($($argument:ty),*) $(-> $result:ty)?;)+ }) => {
        $(#[$doc])+
        #[derive(Debug)]
        pub(crate) struct $name {
            $(pub(crate) $function: unsafe extern "C" fn($($argument),*) $(-> $result)?,)+
        }

        impl $name {
            fn look_up(library: &Library) -> std::result::Result<Self, libloading::Error> {
                Ok(Self {
                    $($function: {
                        // SAFETY: the type is that of the function's declaration in rdma-core's headers.
                        *unsafe { library.get(stringify!($function)) }?
                    },)+
                })
            }
        }
    };
}

table! {
    /// The exported functions of libibverbs that we call.
    Verbs {
        ibv_get_device_list(*mut c_int) -> *mut *mut ibv_device;
        ibv_free_device_list(*mut *mut ibv_device);
        ibv_open_device(*mut ibv_device) -> *mut ibv_context;
        ibv_close_device(*mut ibv_context) -> c_int;
        ibv_query_device(*mut ibv_context, *mut ibv_device_attr) -> c_int;
        ibv_query_port(*mut ibv_context, u8, *mut _compat_ibv_port_attr) -> c_int;
        ibv_alloc_pd(*mut ibv_context) -> *mut ibv_pd;
        ibv_dealloc_pd(*mut ibv_pd) -> c_int;
        ibv_reg_mr(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
        ibv_dereg_mr(*mut ibv_mr) -> c_int;
        ibv_create_comp_channel(*mut ibv_context) -> *mut ibv_comp_channel;
        ibv_destroy_comp_channel(*mut ibv_comp_channel) -> c_int;
        ibv_create_cq(*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int) -> *mut ibv_cq;
        ibv_destroy_cq(*mut ibv_cq) -> c_int;
        ibv_get_cq_event(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
        ibv_ack_cq_events(*mut ibv_cq, c_uint);
        ibv_create_srq(*mut ibv_pd, *mut ibv_srq_init_attr) -> *mut ibv_srq;
        ibv_destroy_srq(*mut ibv_srq) -> c_int;
        ibv_create_qp(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
        ibv_modify_qp(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
        ibv_query_qp(*mut ibv_qp, *mut ibv_qp_attr, c_int, *mut ibv_qp_init_attr) -> c_int;
        ibv_destroy_qp(*mut ibv_qp) -> c_int;
        ibv_get_async_event(*mut ibv_context, *mut RawAsyncEvent) -> c_int;
        ibv_ack_async_event(*mut RawAsyncEvent);
        ibv_fork_init() -> c_int;
    }
}

table! {
    /// The exported functions of librdmacm that address resolution calls. There is no `rdma_connect` here.
    RdmaCm {
        rdma_create_event_channel() -> *mut rdma_event_channel;
        rdma_destroy_event_channel(*mut rdma_event_channel);
        rdma_create_id(*mut rdma_event_channel, *mut *mut rdma_cm_id, *mut c_void, rdma_port_space::Type) -> c_int;
        rdma_destroy_id(*mut rdma_cm_id) -> c_int;
        rdma_resolve_addr(*mut rdma_cm_id, *mut libc::sockaddr, *mut libc::sockaddr, c_int) -> c_int;
        rdma_resolve_route(*mut rdma_cm_id, c_int) -> c_int;
        rdma_get_cm_event(*mut rdma_event_channel, *mut *mut rdma_cm_event) -> c_int;
        rdma_ack_cm_event(*mut rdma_cm_event) -> c_int;
    }
}

/// What became of loading a library.
pub(crate) enum Loaded<T: 'static> {
    /// Its functions.
    Ready(&'static T),
    /// It is not installed.
    Absent(String),
    /// It is installed and lacks a function.
    TooOld(String),
}

impl<T> Clone for Loaded<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Ready(table) => Self::Ready(table),
            Self::Absent(why) => Self::Absent(why.clone()),
            Self::TooOld(why) => Self::TooOld(why.clone()),
        }
    }
}

fn load<T>(name: &str, look_up: fn(&Library) -> std::result::Result<T, libloading::Error>) -> Loaded<T> {
    // SAFETY: the initialisers of rdma-core's libraries register providers and touch nothing of ours.
    let library = match unsafe { Library::new(name) } {
        Ok(library) => library,
        Err(cause) => return Loaded::Absent(cause.to_string()),
    };
    match look_up(&library) {
        Ok(table) => {
            std::mem::forget(library);
            Loaded::Ready(Box::leak(Box::new(table)))
        }
        Err(cause) => Loaded::TooOld(cause.to_string()),
    }
}

/// libibverbs.so.1, loaded on first use and made safe for fork(2) before anything else is asked of it.
pub(crate) fn verbs() -> Loaded<Verbs> {
    static LOADED: OnceLock<Loaded<Verbs>> = OnceLock::new();
    LOADED
        .get_or_init(|| {
            let loaded = load("libibverbs.so.1", Verbs::look_up);
            if let Loaded::Ready(table) = &loaded {
                crate::fork::prepare(table);
            }
            loaded
        })
        .clone()
}

/// librdmacm.so.1, loaded on first use.
pub(crate) fn rdma_cm() -> Loaded<RdmaCm> {
    static LOADED: OnceLock<Loaded<RdmaCm>> = OnceLock::new();
    LOADED.get_or_init(|| load("librdmacm.so.1", RdmaCm::look_up)).clone()
}

/// A function that only newer libraries have.
///
/// # Safety
/// `T` is the function pointer type of that function's declaration.
unsafe fn optional<T: Copy>(name: &str) -> Option<T> {
    // SAFETY: the library is loaded already, for good; this only counts it up.
    let library = unsafe { Library::new("libibverbs.so.1") }.ok()?;
    // SAFETY: the caller answers for the type.
    unsafe { library.get::<T>(name) }.ok().map(|function| *function)
}

/// `ibv_is_fork_initialized`, which rdma-core 35 and newer have.
pub(crate) fn fork_status() -> Option<c_uint> {
    // SAFETY: the type is that of the declaration in verbs.h.
    let function: unsafe extern "C" fn() -> c_uint = unsafe { optional("ibv_is_fork_initialized") }?;
    // SAFETY: the function takes nothing and reads the library's own state.
    Some(unsafe { function() })
}

/// `_ibv_query_gid_table`: context, entries, how many there is room for, flags (0), size of an entry.
pub(crate) type QueryGidTable =
    unsafe extern "C" fn(*mut ibv_context, *mut ibv_gid_entry, usize, u32, usize) -> isize;

/// `_ibv_query_gid_table`, which rdma-core 33 and newer have.
pub(crate) fn query_gid_table() -> Option<QueryGidTable> {
    static FOUND: OnceLock<Option<QueryGidTable>> = OnceLock::new();
    // SAFETY: the type is that of the declaration in verbs.h.
    *FOUND.get_or_init(|| unsafe { optional("_ibv_query_gid_table") })
}

/// The functions of libibverbs, or the error that says what to install.
pub(crate) fn require_verbs() -> Result<&'static Verbs> {
    match verbs() {
        Loaded::Ready(table) => Ok(table),
        Loaded::Absent(why) => Err(Error::new(
            ErrorCode::Library,
            format!(
                "libibverbs cannot be loaded ({why}). Install rdma-core's libraries: on Debian and Ubuntu \
                 libibverbs1, ibverbs-providers and librdmacm1; on Fedora and RHEL libibverbs and librdmacm"
            ),
        )),
        Loaded::TooOld(why) => Err(Error::new(
            ErrorCode::Library,
            format!("libibverbs is too old ({why}): secure-rdma needs the one of rdma-core 28 or newer"),
        )),
    }
}

/// The text of a C string of the library's, for example a device's name.
pub(crate) fn text(bytes: &[c_char]) -> String {
    let bytes: Vec<u8> =
        bytes.iter().take_while(|byte| **byte != 0).map(|byte| byte.to_ne_bytes()[0]).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
