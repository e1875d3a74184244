//! One GPU: its context, its stream, and what it says of itself.

use std::ffi::{CStr, c_int};
use std::path::Path;
use std::sync::Arc;

use crate::CudaError;
use crate::driver::{Driver, Handle};

/// What a card is.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceInfo {
    /// Its number.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Bytes of memory.
    pub memory: usize,
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// The version of CUDA that the driver speaks, e.g. `(12, 8)`.
    pub driver: (i32, i32),
}

impl DeviceInfo {
    /// `sm_86` and the like.
    pub fn arch(&self) -> String {
        format!("sm_{}{}", self.capability.0, self.capability.1)
    }
}

/// The cards of this machine.
///
/// # Errors
/// [`CudaError::NoDriver`] and what the driver says.
pub fn devices(driver: Option<&Path>) -> Result<Vec<DeviceInfo>, CudaError> {
    let driver = Driver::load(driver)?;
    (0..count(&driver)?).map(|index| info(&driver, index)).collect()
}

fn count(driver: &Driver) -> Result<usize, CudaError> {
    let mut n: c_int = 0;
    // SAFETY: the pointer is to an int.
    driver.check("cuDeviceGetCount", unsafe { (driver.device_count)(&mut n) })?;
    Ok(usize::try_from(n).unwrap_or(0))
}

const MAJOR: c_int = 75;
const MINOR: c_int = 76;
const MULTIPROCESSORS: c_int = 16;

/// What the driver calls card `index`.
fn ordinal(driver: &Driver, index: usize) -> Result<c_int, CudaError> {
    let mut device = 0;
    // SAFETY: the pointer is to an int.
    driver.check("cuDeviceGet", unsafe { (driver.device_get)(&mut device, index as c_int) })?;
    Ok(device)
}

fn attribute(driver: &Driver, device: c_int, attribute: c_int) -> Result<i32, CudaError> {
    let mut value = 0;
    // SAFETY: the pointer is to an int.
    driver.check("cuDeviceGetAttribute", unsafe { (driver.device_attribute)(&mut value, attribute, device) })?;
    Ok(value)
}

fn info(driver: &Driver, index: usize) -> Result<DeviceInfo, CudaError> {
    let device = ordinal(driver, index)?;
    let (mut name, mut memory, mut version) = ([0; 128], 0usize, 0);
    // SAFETY: the pointers are to 128 chars, a size and an int.
    unsafe {
        driver.check("cuDeviceGetName", (driver.device_name)(name.as_mut_ptr(), 128, device))?;
        driver.check("cuDeviceTotalMem", (driver.device_memory)(&mut memory, device))?;
        driver.check("cuDriverGetVersion", (driver.driver_version)(&mut version))?;
    }
    // SAFETY: the driver ends the name with a 0 within 128 chars.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    let capability = (attribute(driver, device, MAJOR)?, attribute(driver, device, MINOR)?);
    let multiprocessors = attribute(driver, device, MULTIPROCESSORS)?.max(1) as usize;
    Ok(DeviceInfo { index, name, capability, memory, multiprocessors, driver: (version / 1000, version % 1000 / 10) })
}

/// A GPU with a context and one stream, on which everything happens in order.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) driver: Driver,
    pub(crate) info: DeviceInfo,
    device: c_int,
    context: Handle,
    stream: Handle,
}

// SAFETY: the driver's functions may be called from any thread; the handles are only ever passed to it.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// Opens card `index`.
    ///
    /// # Errors
    /// [`CudaError`]: no driver, no such card, one that is too old, or what the driver says.
    pub(crate) fn open(driver: Option<&Path>, index: usize) -> Result<Arc<Device>, CudaError> {
        let driver = Driver::load(driver)?;
        match count(&driver)? {
            0 => return Err(CudaError::NoDevice),
            count if index >= count => return Err(CudaError::NoSuchDevice { index, count }),
            _ => {}
        }
        let info = info(&driver, index)?;
        if info.capability < (8, 0) {
            let (major, minor) = info.capability;
            return Err(CudaError::OldDevice { name: info.name, major, minor });
        }
        let device = ordinal(&driver, index)?;
        let (mut context, mut stream) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the pointers are to handles; the context becomes this thread's before the stream is made in it.
        unsafe {
            driver.check("cuDevicePrimaryCtxRetain", (driver.context_retain)(&mut context, device))?;
            driver.check("cuCtxSetCurrent", (driver.context_use)(context))?;
            // 1: does not wait for the default stream.
            driver.check("cuStreamCreate", (driver.stream_create)(&mut stream, 1))?;
        }
        Ok(Arc::new(Device { driver, info, device, context, stream }))
    }

    /// Whether kernels can be launched before those before them have ended: from 9.0 on, and in graphs from CUDA 12.3 on.
    pub(crate) fn can_launch_early(&self) -> bool {
        self.info.capability >= (9, 0) && self.info.driver >= (12, 3) && self.driver.launch_with.is_some()
    }

    /// The stream.
    pub(crate) fn stream(&self) -> Handle {
        self.stream
    }

    /// Makes this device's context that of the calling thread: before any call that allocates, copies or launches.
    pub(crate) fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context lives as long as the device.
        self.driver.check("cuCtxSetCurrent", unsafe { (self.driver.context_use)(self.context) })
    }

    /// Waits for all that was launched.
    pub(crate) fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the stream lives as long as the device.
        self.driver.check("cuStreamSynchronize", unsafe { (self.driver.stream_wait)(self.stream) })
    }

    /// Bytes free now.
    pub(crate) fn free_memory(&self) -> Result<usize, CudaError> {
        let (mut free, mut total) = (0, 0);
        self.enter()?;
        // SAFETY: the pointers are to sizes.
        self.driver.check("cuMemGetInfo", unsafe { (self.driver.memory_info)(&mut free, &mut total) })?;
        Ok(free)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: nothing else uses the stream or the context; a device that is lost may refuse, which is no matter.
        unsafe {
            (self.driver.context_use)(self.context);
            (self.driver.stream_destroy)(self.stream);
            (self.driver.context_release)(self.device);
        }
    }
}
