//! The one place where environment variables are read.

/// What the environment says.
pub(crate) struct Environment {
    /// `PELTON_ISA`: the most advanced kernels to use (`scalar`; `avx2`, `avx512`, `amx`; `neon`, `dotprod`, `i8mm`).
    pub isa: Option<String>,
    /// `PELTON_CUDA_DRIVER`: the CUDA driver's library, where it is not the system's.
    pub cuda_driver: Option<std::path::PathBuf>,
    /// `PELTON_PDL=1`: launch kernels on a GPU before those before them have ended (cards from 9.0 on).
    pub early_launches: bool,
    /// `PELTON_API_KEY`: the key that `pelton serve` asks for and `pelton bench serve` sends.
    pub api_key: Option<String>,
    /// Options of the model store, or why there is none.
    pub store: Result<pelton::StoreOptions, pelton::StoreError>,
    /// Where `pelton chat` keeps its history.
    pub history: Option<std::path::PathBuf>,
    /// Where files go that nobody keeps (`TMPDIR`).
    pub scratch: std::path::PathBuf,
}

impl Environment {
    /// Reads it.
    pub(crate) fn read() -> Environment {
        let var = |name: &str| std::env::var(name).ok();
        let set = |name: &str| var(name).filter(|v| !v.is_empty());
        let state = set("XDG_STATE_HOME").map(std::path::PathBuf::from);
        let state = state.or_else(|| set("HOME").map(|home| std::path::Path::new(&home).join(".local/state")));
        Environment {
            isa: set("PELTON_ISA"),
            cuda_driver: set("PELTON_CUDA_DRIVER").map(std::path::PathBuf::from),
            early_launches: set("PELTON_PDL").is_some_and(|v| v == "1"),
            api_key: set("PELTON_API_KEY"),
            store: pelton::StoreOptions::from_vars(var),
            history: state.map(|dir| dir.join("pelton/history.txt")),
            scratch: std::env::temp_dir(),
        }
    }
}
