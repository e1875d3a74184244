//! The mixes of tensor types that people name: `Q4_K_M`, `IQ3_XXS`, ….
//!
//! A mix gives most matrices one type and a few roles, in some layers, another. The rules are llama.cpp's, which set what
//! these names mean, so that files of the same name have the same types and the same size.
//! Invariant: the choice depends on the name of the tensor and the shape of the model alone.

use pelton_quant::DType;

use crate::ModelConfig;

/// A mix: its name, the type of most matrices, and its number in GGUF's `general.file_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mix {
    name: &'static str,
    base: DType,
    file_type: u32,
}

macro_rules! mixes {
    ($($name:ident = $base:ident, $file_type:literal;)*) => {
        #[allow(missing_docs, non_upper_case_globals, reason = "the names are those that people know")]
        impl Mix {
            $(pub const $name: Mix = Mix { name: stringify!($name), base: DType::$base, file_type: $file_type };)*
            /// All of them, by falling size.
            pub const ALL: &[Mix] = &[$(Mix::$name),*];
        }
    };
}

mixes! {
    F32 = F32, 0;
    BF16 = BF16, 32;
    F16 = F16, 1;
    Q8_0 = Q8_0, 7;
    Q6_K = Q6_K, 18;
    Q5_1 = Q5_1, 9;
    Q5_K_M = Q5_K, 17;
    Q5_K_S = Q5_K, 16;
    Q5_0 = Q5_0, 8;
    Q4_1 = Q4_1, 3;
    Q4_K_M = Q4_K, 15;
    Q4_K_S = Q4_K, 14;
    IQ4_NL = IQ4_NL, 25;
    Q4_0 = Q4_0, 2;
    MXFP4_MOE = MXFP4, 38;
    IQ4_XS = IQ4_XS, 30;
    Q3_K_L = Q3_K, 13;
    Q3_K_M = Q3_K, 12;
    IQ3_M = IQ3_S, 27;
    IQ3_S = IQ3_S, 26;
    Q3_K_S = Q3_K, 11;
    IQ3_XS = IQ3_S, 22;
    IQ3_XXS = IQ3_XXS, 23;
    Q2_K = Q2_K, 10;
    Q2_K_S = Q2_K, 21;
    IQ2_M = IQ2_S, 29;
    IQ2_S = IQ2_XS, 28;
    IQ2_XS = IQ2_XS, 20;
    IQ2_XXS = IQ2_XXS, 19;
    TQ2_0 = TQ2_0, 37;
    IQ1_M = IQ1_M, 31;
    TQ1_0 = TQ1_0, 36;
    IQ1_S = IQ1_S, 24;
}

/// What a matrix does, as far as mixes tell matrices apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Embedding,
    Output,
    Q,
    K,
    V,
    /// Q, K and V in one.
    Qkv,
    AttnOutput,
    GateOrUp,
    Down,
    Other,
}

/// What the rules look at.
struct Place<'a> {
    mix: Mix,
    config: &'a ModelConfig,
    has_importance: bool,
    layer: usize,
}

impl Mix {
    /// The mix of this name, in any case; `Q3_K`, `Q4_K` and `Q5_K` are the medium ones.
    ///
    /// ```
    /// use pelton_formats::Mix;
    /// assert_eq!(Mix::from_name("q4_k_m"), Some(Mix::Q4_K_M));
    /// assert_eq!(Mix::from_name("Q5_K"), Some(Mix::Q5_K_M));
    /// assert_eq!(Mix::from_name("Q9"), None);
    /// ```
    pub fn from_name(name: &str) -> Option<Mix> {
        let medium = ["Q3_K", "Q4_K", "Q5_K"].iter().find(|m| m.eq_ignore_ascii_case(name));
        let name = medium.map_or(name.to_owned(), |m| format!("{m}_M"));
        Mix::ALL.iter().copied().find(|mix| mix.name.eq_ignore_ascii_case(&name))
    }

    /// `Q4_K_M`.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// The type of most matrices.
    pub fn base(self) -> DType {
        self.base
    }

    /// The number in `general.file_type`.
    pub fn file_type(self) -> u32 {
        self.file_type
    }

    /// The type of a matrix, by its name in a GGUF file. `has_importance`: whether an importance matrix will guide the
    /// encoder, which lets some mixes spend less on the first layers.
    pub fn type_of(self, config: &ModelConfig, has_importance: bool, name: &str) -> DType {
        let place = Place { mix: self, config, has_importance, layer: layer_of(name) };
        if self.base.block_len() == 1 {
            return self.base;
        }
        match role_of(name) {
            Role::Output => place.output(),
            Role::Embedding if config.tied_embeddings => place.output(),
            _ if self == Mix::MXFP4_MOE => {
                if name.contains("_exps.") {
                    DType::MXFP4
                } else {
                    DType::Q8_0
                }
            }
            Role::Embedding => place.embedding(),
            role if self.is_smallest() => place.smallest(role),
            // A fused matrix has the values in it.
            Role::V | Role::Qkv => place.value(),
            Role::K => place.key(),
            Role::Q => place.query(),
            Role::AttnOutput => place.attn_output(),
            Role::Down => place.down(),
            Role::GateOrUp => place.gate_or_up(),
            _ => self.base,
        }
    }

    /// Mixes around 2 bits and less have rules of their own.
    fn is_smallest(self) -> bool {
        [Mix::IQ1_S, Mix::IQ1_M, Mix::IQ2_XXS, Mix::IQ2_XS, Mix::IQ2_S, Mix::IQ2_M].contains(&self)
    }
}

impl std::fmt::Display for Mix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name)
    }
}

/// What stands in for a type whose blocks do not divide rows of `cols`: one of 32, else F16.
pub fn fallback(wanted: DType, cols: usize) -> DType {
    if cols.is_multiple_of(wanted.block_len()) {
        return wanted;
    }
    let smaller = match wanted {
        DType::Q2_K | DType::Q3_K | DType::TQ1_0 | DType::TQ2_0 => DType::Q4_0,
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::Q6_K => DType::Q8_0,
        _ => DType::IQ4_NL,
    };
    if cols.is_multiple_of(smaller.block_len()) { smaller } else { DType::F16 }
}

fn role_of(name: &str) -> Role {
    let roles = [
        ("token_embd.", Role::Embedding),
        ("attn_qkv.", Role::Qkv),
        ("attn_q.", Role::Q),
        ("attn_k.", Role::K),
        ("attn_v.", Role::V),
        ("attn_output.", Role::AttnOutput),
        ("ffn_up", Role::GateOrUp),
        ("ffn_gate", Role::GateOrUp),
        ("ffn_down", Role::Down),
    ];
    if name == "output.weight" {
        return Role::Output;
    }
    roles.iter().find(|(part, _)| name.contains(part)).map_or(Role::Other, |(_, role)| *role)
}

fn layer_of(name: &str) -> usize {
    let number = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next());
    number.and_then(|n| n.parse().ok()).unwrap_or(0)
}

impl Place<'_> {
    fn is(&self, mixes: &[Mix]) -> bool {
        mixes.contains(&self.mix)
    }

    fn n_experts(&self) -> usize {
        self.config.moe.as_ref().map_or(0, |moe| moe.n_experts)
    }

    /// Whether four or more query heads share a key: then keys and values are small and may have more bits.
    fn shares_keys(&self) -> bool {
        self.config.n_heads >= 4 * self.config.n_kv_heads
    }

    fn in_first(&self, share: usize) -> bool {
        self.layer < self.config.n_layers / share
    }

    /// The first and the last eighth of the layers, and every third between.
    fn more_bits(&self) -> bool {
        let n = self.config.n_layers;
        self.in_first(8) || self.layer >= 7 * n / 8 || (self.layer - n / 8) % 3 == 2
    }

    fn output(&self) -> DType {
        let small = self.mix.is_smallest() || self.is(&[Mix::IQ3_XXS]);
        match self.mix {
            Mix::MXFP4_MOE | Mix::Q8_0 => DType::Q8_0,
            _ if !self.config.hidden.is_multiple_of(self.mix.base.block_len()) => DType::Q8_0,
            _ if small => DType::Q5_K,
            _ => DType::Q6_K,
        }
    }

    fn embedding(&self) -> DType {
        match self.mix {
            Mix::IQ2_XXS | Mix::IQ2_XS | Mix::IQ1_S | Mix::IQ1_M => DType::Q2_K,
            Mix::IQ2_S | Mix::IQ2_M | Mix::IQ3_XXS => DType::IQ3_S,
            Mix::TQ1_0 | Mix::TQ2_0 => DType::Q4_K,
            _ => self.mix.base,
        }
    }

    fn smallest(&self, role: Role) -> DType {
        let wider = self.is(&[Mix::IQ2_S, Mix::IQ2_M]);
        let next = if wider { DType::IQ3_S } else { DType::Q2_K };
        match role {
            Role::V | Role::Qkv if self.shares_keys() || self.n_experts() >= 4 => DType::Q4_K,
            Role::V | Role::Qkv => next,
            Role::K if self.n_experts() == 8 => DType::Q4_K,
            Role::Down if self.in_first(8) => next,
            Role::AttnOutput if self.n_experts() == 8 => DType::Q5_K,
            Role::AttnOutput if self.is(&[Mix::IQ1_S, Mix::IQ1_M]) => DType::IQ2_XXS,
            Role::AttnOutput if wider => DType::IQ3_S,
            _ => self.mix.base,
        }
    }

    fn value(&self) -> DType {
        let shares = self.shares_keys();
        let chosen = match self.mix {
            Mix::Q2_K => {
                if shares {
                    DType::Q4_K
                } else {
                    DType::Q3_K
                }
            }
            Mix::Q2_K_S | Mix::IQ3_XS | Mix::IQ3_S if shares => DType::Q4_K,
            Mix::IQ3_XXS if shares => DType::Q4_K,
            Mix::IQ3_XXS if !self.has_importance => DType::IQ3_S,
            Mix::IQ3_M => DType::Q4_K,
            Mix::Q3_K_M => {
                if self.layer < 2 {
                    DType::Q5_K
                } else {
                    DType::Q4_K
                }
            }
            Mix::Q3_K_L => DType::Q5_K,
            Mix::IQ4_NL | Mix::IQ4_XS if shares => DType::Q5_K,
            Mix::Q4_K_M | Mix::Q5_K_M if self.more_bits() => DType::Q6_K,
            Mix::Q4_K_S if self.layer < 4 => DType::Q5_K,
            _ => self.mix.base,
        };
        // Models of 80 layers with shared keys: their values are an eighth of the queries.
        let is_70b = self.config.n_layers == 80 && self.config.n_heads != self.config.n_kv_heads;
        match chosen {
            _ if self.n_experts() == 8 => DType::Q8_0,
            DType::Q3_K | DType::Q4_K if is_70b => DType::Q5_K,
            _ => chosen,
        }
    }

    fn key(&self) -> DType {
        match self.mix {
            _ if self.n_experts() == 8 => DType::Q8_0,
            _ => self.query(),
        }
    }

    fn query(&self) -> DType {
        match self.mix {
            Mix::IQ3_XS => DType::IQ3_XXS,
            Mix::IQ3_XXS => DType::IQ2_S,
            _ => self.mix.base,
        }
    }

    fn attn_output(&self) -> DType {
        let raised = [
            Mix::Q2_K,
            Mix::IQ3_XS,
            Mix::IQ3_XXS,
            Mix::Q3_K_S,
            Mix::Q3_K_M,
            Mix::IQ4_NL,
            Mix::Q4_K_S,
            Mix::Q4_K_M,
            Mix::IQ3_S,
            Mix::IQ3_M,
            Mix::IQ4_XS,
        ];
        match self.mix {
            _ if self.n_experts() == 8 => {
                if self.is(&raised) {
                    DType::Q5_K
                } else {
                    self.mix.base
                }
            }
            Mix::Q2_K => DType::Q3_K,
            Mix::IQ3_XXS => DType::IQ3_S,
            Mix::Q3_K_M | Mix::IQ3_M => DType::Q4_K,
            Mix::Q3_K_L => DType::Q5_K,
            _ => self.mix.base,
        }
    }

    fn down(&self) -> DType {
        match self.mix {
            Mix::Q2_K => DType::Q3_K,
            Mix::Q2_K_S if self.in_first(8) => DType::Q4_K,
            Mix::IQ3_XXS if !self.has_importance => {
                if self.in_first(8) {
                    DType::Q4_K
                } else {
                    DType::Q3_K
                }
            }
            Mix::Q3_K_M => {
                if self.in_first(16) {
                    DType::Q5_K
                } else {
                    DType::Q4_K
                }
            }
            Mix::IQ3_M if self.in_first(8) || self.n_experts() == 8 && self.more_bits() => DType::Q4_K,
            Mix::Q3_K_L => DType::Q5_K,
            Mix::Q4_K_M | Mix::Q5_K_M if self.more_bits() => DType::Q6_K,
            Mix::IQ4_NL | Mix::IQ4_XS if self.in_first(8) && !self.has_importance => DType::Q5_K,
            Mix::Q4_K_S if self.in_first(8) => DType::Q5_K,
            Mix::Q4_0 if self.has_importance && self.in_first(8) => DType::Q4_1,
            Mix::Q5_0 if self.has_importance && self.in_first(8) => DType::Q5_1,
            _ => self.mix.base,
        }
    }

    fn gate_or_up(&self) -> DType {
        let n = self.config.n_layers;
        let between = self.layer >= n / 8 && self.layer < 7 * n / 8;
        if self.mix == Mix::IQ3_XS && between { DType::IQ3_XXS } else { self.mix.base }
    }
}
