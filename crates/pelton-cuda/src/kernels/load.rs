//! Modules of a device: kernels found by name.

use std::collections::HashMap;
use std::ffi::CString;
use std::path::Path;
use std::sync::Arc;

use super::{ARCHITECTURES, Bundle, Compiler, PTX, SOURCES, Source};
use crate::CudaError;
use crate::device::Device;
use crate::driver::Handle;
use crate::queue::Function;

/// The driver's number for the attribute of a function: shared memory that a launch may ask for.
const MAX_DYNAMIC_SHARED: i32 = 8;

/// The kernels on one device.
#[derive(Debug)]
pub(crate) struct Kernels {
    device: Arc<Device>,
    modules: Vec<(&'static Source, Handle)>,
    /// The code is for cards that launch kernels early: it waits where the sources say so.
    waits: bool,
    functions: HashMap<String, Function>,
    /// Where they came from.
    origin: String,
}

// SAFETY: the handles are only passed to the driver.
unsafe impl Send for Kernels {}

/// The architectures whose machine code runs on a card, best first: those of its generation that are not newer than it. (Code
/// for `sm_90a` runs on 9.0 alone.)
fn candidates(capability: (i32, i32)) -> Vec<&'static str> {
    let parse = |arch: &str| {
        let digits = arch.trim_start_matches("sm_");
        let plain = digits.trim_end_matches('a');
        let n: i32 = plain.parse().unwrap_or(0);
        ((n / 10, n % 10), plain != digits)
    };
    let runs = |arch: &&&str| match parse(arch) {
        (code, true) => code == capability,
        (code, false) => code.0 == capability.0 && code.1 <= capability.1,
    };
    let mut found: Vec<&str> = ARCHITECTURES.iter().filter(runs).copied().collect();
    found.sort_by_key(|arch| std::cmp::Reverse(parse(arch).0));
    found
}

/// Finds the code of every file, all from one place; and says which.
fn find_code(device: &Device, compiler: Option<&Path>) -> Result<(Vec<Vec<u8>>, String, bool), CudaError> {
    let arch = device.info.arch();
    let no_kernels = |reason: String| CudaError::NoKernels { arch: arch.clone(), reason };
    let bundle = Bundle::embedded().map_err(|e| no_kernels(e.to_string()))?;
    for arch in candidates(device.info.capability).into_iter().chain([PTX]) {
        let all: Option<Vec<Vec<u8>>> = SOURCES.iter().map(|s| bundle.get(s.name, arch).map(<[u8]>::to_vec)).collect();
        if let Some(code) = all {
            // What the driver makes of PTX is code for the oldest architecture.
            return Ok((code, format!("embedded {arch}"), arch != PTX && device.info.capability >= (9, 0)));
        }
    }
    let compiler = Compiler::load(compiler).map_err(no_kernels)?;
    let compile = |s: &Source| compiler.compile(s, &arch, &[]).map(|o| o.code);
    let code = SOURCES.iter().map(compile).collect::<Result<Vec<_>, _>>().map_err(no_kernels)?;
    let (major, minor) = compiler.version();
    // Nobody has looked whether this compiler leaves all loads behind the wait, as `cargo xtask sass-gate` does.
    Ok((code, format!("compiled here by NVRTC {major}.{minor}"), false))
}

impl Kernels {
    /// Loads every file of kernels.
    ///
    /// # Errors
    /// [`CudaError::NoKernels`] where there is no code for the card and no compiler, and what the driver says.
    pub(crate) fn load(device: &Arc<Device>, compiler: Option<&Path>) -> Result<Kernels, CudaError> {
        // The simulator brings its kernels itself.
        let (code, origin, waits) = match device.driver.is_simulated() {
            true => (vec![vec![0; 8]; SOURCES.len()], "simulated".to_string(), true),
            false => find_code(device, compiler)?,
        };
        device.enter()?;
        let mut kernels =
            Kernels { device: device.clone(), modules: Vec::new(), waits, functions: HashMap::new(), origin };
        for (source, code) in SOURCES.iter().zip(code) {
            let mut module = std::ptr::null_mut();
            // SAFETY: the code is that of a compiler (PTX ends with a zero byte), kept until the driver has read it.
            let status = unsafe { (device.driver.module_load)(&mut module, code.as_ptr().cast()) };
            device.driver.check("cuModuleLoadData", status)?;
            kernels.modules.push((source, module));
        }
        Ok(kernels)
    }

    /// Where they came from, for people.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// A kernel, by its file and name.
    ///
    /// # Errors
    /// [`CudaError::Driver`] where the module lacks it.
    pub(crate) fn get(&mut self, file: &str, name: &str) -> Result<Function, CudaError> {
        if let Some(&function) = self.functions.get(name) {
            return Ok(function);
        }
        let (source, module) = self.modules.iter().find(|(s, _)| s.name == file).expect("a file of SOURCES");
        let waits = self.waits && source.waits();
        let symbol = CString::new(name).expect("names of kernels have no zero byte");
        let mut function = std::ptr::null_mut();
        // SAFETY: the module lives as long as `self`; the pointer is to a handle.
        let status = unsafe { (self.device.driver.module_function)(&mut function, *module, symbol.as_ptr()) };
        self.device
            .driver
            .check("cuModuleGetFunction", status)
            .map_err(|e| CudaError::NoKernels { arch: self.device.info.arch(), reason: format!("{name}: {e}") })?;
        let function = Function { handle: function, waits };
        self.functions.insert(name.to_string(), function);
        Ok(function)
    }

    /// A kernel whose launches ask for up to `shared` bytes of shared memory.
    pub(crate) fn get_with_shared(&mut self, file: &str, name: &str, shared: usize) -> Result<Function, CudaError> {
        let function = self.get(file, name)?;
        if shared > 48 << 10 {
            // SAFETY: the function lives as long as its module.
            let status =
                unsafe { (self.device.driver.function_set)(function.handle, MAX_DYNAMIC_SHARED, shared as i32) };
            self.device.driver.check("cuFuncSetAttribute", status)?;
        }
        Ok(function)
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        let _entered = self.device.enter();
        let _waited = self.device.wait();
        for (_, module) in &self.modules {
            // SAFETY: nothing runs any more; functions are not used after their `Kernels`.
            unsafe { (self.device.driver.module_unload)(*module) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_runs_on_its_generation_and_not_on_an_older_card() {
        assert_eq!(candidates((8, 0)), ["sm_80"]);
        assert_eq!(candidates((8, 9)), ["sm_89", "sm_86", "sm_80"]);
        assert_eq!(candidates((8, 7)), ["sm_86", "sm_80"]);
        assert_eq!(candidates((9, 0)), ["sm_90a"]);
        assert_eq!(candidates((12, 0)), ["sm_120"]);
        assert_eq!(candidates((10, 0)), [""; 0]);
    }
}
