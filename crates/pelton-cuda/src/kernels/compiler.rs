//! NVRTC, the compiler of CUDA as a library, found at run time: for binaries without compiled kernels, and for
//! `cargo xtask cuda-kernels`, which makes them.
//!
//! Invariant: kernels include nothing but [`super::HEADERS`], so that no toolkit's headers are needed.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use libloading::Library;

use super::{HEADERS, Source};

type Program = *mut c_void;
type Fill = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;

/// What a compilation gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Machine code (`sm_*`) or PTX (`compute_*`), as a module is loaded from it.
    pub code: Vec<u8>,
    /// What the compiler said: warnings, and the resources that kernels use.
    pub log: String,
}

/// The compiler.
pub struct Compiler {
    version: (i32, i32),
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    code_size: Size,
    code: Fill,
    ptx_size: Size,
    ptx: Fill,
    log_size: Size,
    log: Fill,
    /// Kept open as long as its functions may be called; the built-in functions before it, where they have to be found first.
    _libraries: Vec<Library>,
}

/// Where it is looked for: versions 13 and 12, then what a toolkit's link points to.
const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

impl Compiler {
    /// Loads the compiler, from `path` where one is given.
    ///
    /// # Errors
    /// What was looked for, and why it cannot be used.
    pub fn load(path: Option<&Path>) -> Result<Compiler, String> {
        let names: Vec<PathBuf> = path.map_or_else(|| NAMES.map(PathBuf::from).to_vec(), |p| vec![p.to_path_buf()]);
        let mut problem = String::new();
        for name in &names {
            // SAFETY: as for the driver: the system's library, or what the user named.
            let libraries = unsafe { with_builtins(name) };
            match libraries
                .and_then(|libraries| Compiler::of(libraries).map_err(|symbol| format!("it has no function {symbol}")))
            {
                Ok(compiler) => return Ok(compiler),
                Err(e) => problem = format!("{}: {e}", name.display()),
            }
        }
        Err(format!("the CUDA compiler library cannot be loaded ({problem})"))
    }

    fn of(libraries: Vec<Library>) -> Result<Compiler, String> {
        let library = libraries.last().expect("the library itself is the last");
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = get(library, "nvrtcVersion")?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the pointers are to ints.
        unsafe { version(&mut major, &mut minor) };
        Ok(Compiler {
            version: (major, minor),
            create: get(library, "nvrtcCreateProgram")?,
            compile: get(library, "nvrtcCompileProgram")?,
            destroy: get(library, "nvrtcDestroyProgram")?,
            code_size: get(library, "nvrtcGetCUBINSize")?,
            code: get(library, "nvrtcGetCUBIN")?,
            ptx_size: get(library, "nvrtcGetPTXSize")?,
            ptx: get(library, "nvrtcGetPTX")?,
            log_size: get(library, "nvrtcGetProgramLogSize")?,
            log: get(library, "nvrtcGetProgramLog")?,
            _libraries: libraries,
        })
    }

    /// The toolkit's version, e.g. `(12, 8)`.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Compiles a file of kernels for `sm_86` (machine code) or `compute_80` (PTX).
    ///
    /// # Errors
    /// What the compiler said.
    pub fn compile(&self, source: &Source, arch: &str, options: &[&str]) -> Result<Output, String> {
        let text = |s: &str| CString::new(s).map_err(|_| format!("{}: a zero byte", source.name));
        let mut program = std::ptr::null_mut();
        let (file, code) = (text(&format!("{}.cu", source.name))?, text(source.text)?);
        let headers = HEADERS.iter().map(|(_, t)| text(t)).collect::<Result<Vec<_>, _>>()?;
        let names = HEADERS.iter().map(|(n, _)| text(n)).collect::<Result<Vec<_>, _>>()?;
        let arch_option = format!("--gpu-architecture={arch}");
        let options = [arch_option.as_str(), "--std=c++17"]
            .iter()
            .chain(options)
            .map(|o| text(o))
            .collect::<Result<Vec<_>, _>>()?;
        let pointers = |texts: &[CString]| -> Vec<*const c_char> { texts.iter().map(|t| t.as_ptr()).collect() };
        let (headers, names, options) = (pointers(&headers), pointers(&names), pointers(&options));
        // SAFETY: all texts end with a zero byte and live until the compiler returns; lengths are those of the arrays.
        unsafe {
            let n = HEADERS.len() as c_int;
            if (self.create)(&mut program, code.as_ptr(), file.as_ptr(), n, headers.as_ptr(), names.as_ptr()) != 0 {
                return Err(format!("{}: the compiler does not take it", source.name));
            }
            let status = (self.compile)(program, options.len() as c_int, options.as_ptr());
            let log = self.text(program, self.log_size, self.log);
            let (size, fill) =
                if arch.starts_with("sm_") { (self.code_size, self.code) } else { (self.ptx_size, self.ptx) };
            let code = self.bytes(program, size, fill);
            (self.destroy)(&mut program);
            if status != 0 { Err(format!("{}.cu for {arch}: {log}", source.name)) } else { Ok(Output { code, log }) }
        }
    }

    /// # Safety
    /// The program lives, and the functions belong together.
    unsafe fn bytes(&self, program: Program, size: Size, fill: Fill) -> Vec<u8> {
        let mut n = 0;
        // SAFETY: the caller's; the buffer is as long as the compiler says.
        unsafe {
            if size(program, &mut n) != 0 {
                return Vec::new();
            }
            let mut bytes = vec![0u8; n];
            fill(program, bytes.as_mut_ptr().cast());
            bytes
        }
    }

    /// # Safety
    /// As [`Compiler::bytes`].
    unsafe fn text(&self, program: Program, size: Size, fill: Fill) -> String {
        // SAFETY: the caller's.
        let bytes = unsafe { self.bytes(program, size, fill) };
        CStr::from_bytes_until_nul(&bytes).map(|t| t.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

fn get<T: Copy>(library: &Library, name: &str) -> Result<T, String> {
    // SAFETY: the types of the functions are those of NVRTC's documentation, unchanged since version 11.2.
    unsafe { library.get::<T>(name.as_bytes()) }.map(|s| *s).map_err(|_| name.to_string())
}

/// The library, preceded by its built-in functions where they lie beside it: version 13 has no search path of its own.
///
/// # Safety
/// Loading runs the libraries' initializers.
unsafe fn with_builtins(path: &Path) -> Result<Vec<Library>, String> {
    let mut libraries = Vec::new();
    let beside = path.parent().filter(|p| !p.as_os_str().is_empty()).and_then(|p| std::fs::read_dir(p).ok());
    for entry in beside.into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("libnvrtc-builtins.so") {
            // SAFETY: the caller's. One that does not load is not needed.
            libraries.extend(unsafe { Library::new(entry.path()) });
        }
    }
    // SAFETY: the caller's.
    libraries.push(unsafe { Library::new(path) }.map_err(|e| e.to_string())?);
    Ok(libraries)
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Compiler(NVRTC {}.{})", self.version.0, self.version.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_that_is_not_there_is_an_error_that_names_it() {
        let error = Compiler::load(Some(Path::new("no-such-compiler.so"))).unwrap_err();
        assert!(error.contains("no-such-compiler.so"), "{error}");
    }
}
