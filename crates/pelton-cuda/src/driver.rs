//! The driver's functions, found at run time.
//!
//! Invariant: every name is looked up before the first call, and a library or a name that is not there is an error,
//! never a panic: a machine without a driver runs the same binary.

use std::ffi::{CStr, OsString, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};

use libloading::Library;

use crate::CudaError;

/// A status of the driver; 0 is success.
pub(crate) type Status = c_int;
/// An address in device memory.
pub(crate) type DevicePointer = u64;
/// A context, stream, module, function, event, graph or executable graph.
pub(crate) type Handle = *mut c_void;

/// The driver's status for memory that is not there.
pub(crate) const OUT_OF_MEMORY: Status = 2;

/// One attribute of a launch, as the driver lays it out.
#[repr(C)]
pub(crate) struct LaunchAttribute {
    id: c_int,
    pad: [u8; 4],
    value: [u64; 8],
}

impl LaunchAttribute {
    /// The kernel may begin before the one before it has ended (programmatic stream serialization).
    pub(crate) const EARLY: LaunchAttribute = LaunchAttribute { id: 6, pad: [0; 4], value: [1, 0, 0, 0, 0, 0, 0, 0] };
}

/// A launch with attributes, as the driver lays it out.
#[repr(C)]
pub(crate) struct LaunchConfig {
    pub(crate) grid: [c_uint; 3],
    pub(crate) block: [c_uint; 3],
    pub(crate) shared: c_uint,
    pub(crate) stream: Handle,
    pub(crate) attributes: *const LaunchAttribute,
    pub(crate) n_attributes: c_uint,
}

type LaunchWith = unsafe extern "C" fn(*const LaunchConfig, Handle, *mut *mut c_void, *mut *mut c_void) -> Status;

/// Declares the table: each field is a C function of the same name, or of the name given.
macro_rules! driver_table {
    ($($field:ident = $symbol:literal ($($arg:ty),*);)*) => {
        /// The driver, and the library that it lives in.
        pub(crate) struct Driver {
            path: PathBuf,
            $(pub(crate) $field: unsafe extern "C" fn($($arg),*) -> Status,)*
            /// Changes the parameters of an executable graph; not in old drivers.
            pub(crate) graph_exec_update: Option<unsafe extern "C" fn(Handle, Handle, *mut c_void) -> Status>,
            /// Launches with attributes; not in old drivers.
            pub(crate) launch_with: Option<LaunchWith>,
            /// Kept open as long as its functions may be called.
            library: Library,
        }

        impl Driver {
            /// # Safety
            /// `library` is a CUDA driver: the functions have the types of its documentation.
            unsafe fn of(library: Library, path: &Path) -> Result<Driver, CudaError> {
                // SAFETY: the caller's; each function outlives no `Driver`.
                unsafe {
                    Ok(Driver {
                        path: path.to_path_buf(),
                        $($field: symbol(&library, path, $symbol)?,)*
                        graph_exec_update: library.get(b"cuGraphExecUpdate_v2\0").ok().map(|s| *s),
                        launch_with: library.get(b"cuLaunchKernelEx\0").ok().map(|s| *s),
                        library,
                    })
                }
            }
        }
    };
}

driver_table! {
    init = "cuInit" (c_uint);
    driver_version = "cuDriverGetVersion" (*mut c_int);
    error_name = "cuGetErrorName" (Status, *mut *const c_char);
    error_string = "cuGetErrorString" (Status, *mut *const c_char);
    device_count = "cuDeviceGetCount" (*mut c_int);
    device_get = "cuDeviceGet" (*mut c_int, c_int);
    device_name = "cuDeviceGetName" (*mut c_char, c_int, c_int);
    device_attribute = "cuDeviceGetAttribute" (*mut c_int, c_int, c_int);
    device_memory = "cuDeviceTotalMem_v2" (*mut usize, c_int);
    context_retain = "cuDevicePrimaryCtxRetain" (*mut Handle, c_int);
    context_release = "cuDevicePrimaryCtxRelease_v2" (c_int);
    context_use = "cuCtxSetCurrent" (Handle);
    memory_info = "cuMemGetInfo_v2" (*mut usize, *mut usize);
    allocate = "cuMemAlloc_v2" (*mut DevicePointer, usize);
    free = "cuMemFree_v2" (DevicePointer);
    to_device = "cuMemcpyHtoDAsync_v2" (DevicePointer, *const c_void, usize, Handle);
    to_host = "cuMemcpyDtoHAsync_v2" (*mut c_void, DevicePointer, usize, Handle);
    stream_create = "cuStreamCreate" (*mut Handle, c_uint);
    stream_destroy = "cuStreamDestroy_v2" (Handle);
    stream_wait = "cuStreamSynchronize" (Handle);
    module_load = "cuModuleLoadData" (*mut Handle, *const c_void);
    module_unload = "cuModuleUnload" (Handle);
    module_function = "cuModuleGetFunction" (*mut Handle, Handle, *const c_char);
    function_set = "cuFuncSetAttribute" (Handle, c_int, c_int);
    launch = "cuLaunchKernel" (Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void);
    capture_begin = "cuStreamBeginCapture_v2" (Handle, c_int);
    capture_end = "cuStreamEndCapture" (Handle, *mut Handle);
    graph_instantiate = "cuGraphInstantiateWithFlags" (*mut Handle, Handle, u64);
    graph_launch = "cuGraphLaunch" (Handle, Handle);
    graph_destroy = "cuGraphDestroy" (Handle);
    graph_exec_destroy = "cuGraphExecDestroy" (Handle);
}

/// # Safety
/// The function has the type `T`.
unsafe fn symbol<T: Copy>(library: &Library, path: &Path, name: &str) -> Result<T, CudaError> {
    let missing = || CudaError::OldDriver { library: path.display().to_string(), symbol: name.to_string() };
    // SAFETY: the caller's.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found.map(|s| *s).map_err(|_| missing())
}

/// Where the driver is looked for.
fn usual_names() -> Vec<OsString> {
    if cfg!(windows) { vec!["nvcuda.dll".into()] } else { vec!["libcuda.so.1".into(), "libcuda.so".into()] }
}

impl Driver {
    /// Loads the driver, from `path` where one is given, and starts it.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`] where there is none, [`CudaError::OldDriver`] where it lacks a function, and what it
    /// says itself where it does not start.
    pub(crate) fn load(path: Option<&Path>) -> Result<Driver, CudaError> {
        let names = path.map_or_else(usual_names, |p| vec![p.as_os_str().to_owned()]);
        let mut reason = String::new();
        for name in &names {
            // SAFETY: loading runs the library's initializers; it is the system's driver, or what the user named.
            match unsafe { Library::new(name) } {
                Ok(library) => {
                    // SAFETY: as above: a driver has the functions that its documentation lists.
                    let driver = unsafe { Driver::of(library, Path::new(name)) }?;
                    // SAFETY: the first call, as the driver asks.
                    driver.check("cuInit", unsafe { (driver.init)(0) })?;
                    return Ok(driver);
                }
                Err(e) => reason = e.to_string(),
            }
        }
        Err(CudaError::NoDriver { library: names[0].to_string_lossy().into_owned(), reason })
    }

    /// Whether this is the simulator's driver.
    pub(crate) fn is_simulated(&self) -> bool {
        // SAFETY: the symbol is only looked for.
        unsafe { self.library.get::<*const c_void>(b"sim_launches\0") }.is_ok()
    }

    /// A status as a result.
    pub(crate) fn check(&self, call: &'static str, status: Status) -> Result<(), CudaError> {
        if status == 0 {
            return Ok(());
        }
        let text = |f: unsafe extern "C" fn(Status, *mut *const c_char) -> Status| {
            let mut text = std::ptr::null();
            // SAFETY: the function sets the pointer to a string that lives for ever, or leaves it null.
            unsafe {
                f(status, &mut text);
                if text.is_null() {
                    format!("status {status}")
                } else {
                    CStr::from_ptr(text).to_string_lossy().into_owned()
                }
            }
        };
        Err(CudaError::Driver { call, name: text(self.error_name), message: text(self.error_string) })
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Driver({}, {:?})", self.path.display(), self.library)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_is_an_error_that_says_so() {
        let error = Driver::load(Some(Path::new("no-such-library.so"))).unwrap_err();
        assert!(matches!(error, CudaError::NoDriver { .. }), "{error}");
        assert!(error.to_string().contains("no-such-library.so"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_that_is_no_driver_is_an_error_that_names_the_function() {
        let error = Driver::load(Some(Path::new("libm.so.6"))).unwrap_err();
        assert!(matches!(&error, CudaError::OldDriver { symbol, .. } if symbol == "cuInit"), "{error}");
    }
}
