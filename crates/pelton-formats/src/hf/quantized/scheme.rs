//! `quantization_config` of `config.json`.
//!
//! Invariant: what Pelton does not read is refused by its name, never guessed.

use crate::FormatError;
use crate::error::brief;
use crate::hf::fields::Fields;

/// Methods of `quant_method` that are read.
const METHODS: &str = "awq, gptq, bitsandbytes, fp8, fbgemm_fp8, compressed-tensors (or a GGUF file)";

/// Columns that share a scale; `None` is a whole row.
pub(super) type GroupSize = Option<usize>;

/// How a folder's weights are quantized.
#[derive(Clone, Debug)]
pub(in crate::hf) struct Scheme {
    /// The file that says so.
    pub(super) file: String,
    /// For people: `GPTQ 4 bit, group size 128`.
    pub(in crate::hf) name: String,
    pub(super) method: Method,
    /// Modules that are not quantized, by their names or parts of them.
    pub(super) kept: Vec<String>,
}

/// The families of formats.
#[derive(Clone, Debug)]
pub(super) enum Method {
    /// Four bits in AWQ's GEMM layout.
    Awq(GroupSize),
    Gptq(Gptq),
    /// bitsandbytes in four bits; each tensor says of itself which.
    Nf4Fp4,
    /// bitsandbytes' LLM.int8().
    Int8Rows,
    /// E4M3 with a scale for each block `(rows, columns)`, or for what the scale's shape says.
    Fp8(Option<(usize, usize)>),
    Compressed(Vec<CompressedGroup>),
}

/// GPTQ's parameters.
#[derive(Clone, Debug)]
pub(super) struct Gptq {
    pub(super) bits: usize,
    pub(super) group: GroupSize,
    /// Zero points are all alike.
    pub(super) symmetric: bool,
    /// Columns are in the order of their importance: `g_idx` must be there.
    pub(super) ordered: bool,
    /// Stored zero points are one less than what they stand for (all but `gptq_v2`).
    pub(super) is_v1: bool,
}

/// One of compressed-tensors' `config_groups`.
#[derive(Clone, Debug)]
pub(super) struct CompressedGroup {
    pub(super) bits: usize,
    pub(super) is_float: bool,
    pub(super) symmetric: bool,
    pub(super) strategy: Strategy,
}

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strategy {
    Tensor,
    Channel,
    Group(usize),
    Block(usize, usize),
}

impl Scheme {
    /// Reads `quantization_config`; `None` where there is none.
    pub(in crate::hf) fn read(config: &Fields<'_>) -> Result<Option<Scheme>, FormatError> {
        let Some(q) = config.object("quantization_config")? else { return Ok(None) };
        let kept_key = if q.has_key("modules_to_not_convert") { "modules_to_not_convert" } else { "ignored_layers" };
        let mut kept = names(&q, kept_key)?;
        let (method, name) = match q.str("quant_method")? {
            Some("awq") => awq(&q)?,
            Some("gptq") => gptq(&q)?,
            Some("bitsandbytes") => {
                kept = names(&q, "llm_int8_skip_modules")?;
                bitsandbytes(&q)?
            }
            Some(method @ ("fp8" | "fbgemm_fp8")) => fp8(&q, method)?,
            Some("compressed-tensors") => {
                // Patterns are not needed: what is quantized has its scales beside it.
                kept = names(&q, "ignore")?.into_iter().filter(|name| !name.starts_with("re:")).collect();
                compressed(&q)?
            }
            Some(other) => return Err(q.wrong("quant_method", &other.into(), METHODS)),
            None => return Err(q.missing("quant_method", METHODS)),
        };
        Ok(Some(Scheme { file: config.file.to_owned(), name, method, kept }))
    }
}

/// A list of names; absent is empty.
fn names(q: &Fields<'_>, key: &str) -> Result<Vec<String>, FormatError> {
    let items = q.array(key)?.unwrap_or_default();
    let name = |item: &serde_json::Value| {
        item.as_str().map(str::to_owned).ok_or_else(|| q.wrong(key, item, "names of modules"))
    };
    items.iter().map(name).collect()
}

/// `-1` is a whole row.
fn group_size(q: &Fields<'_>, key: &str) -> Result<GroupSize, FormatError> {
    match q.integer(key)? {
        None => Ok(Some(128)),
        Some(-1) => Ok(None),
        Some(n) => match usize::try_from(n) {
            Ok(n) if n > 0 => Ok(Some(n)),
            _ => Err(q.wrong(key, &n.into(), "a group size of at least 1, or -1 for whole rows")),
        },
    }
}

fn group_text(group: GroupSize) -> String {
    group.map_or("a scale for each row".into(), |size| format!("group size {size}"))
}

fn awq(q: &Fields<'_>) -> Result<(Method, String), FormatError> {
    let (bits, size) = (if q.has_key("bits") { "bits" } else { "w_bit" }, q.has_key("group_size"));
    let group = group_size(q, if size { "group_size" } else { "q_group_size" })?;
    match q.count(bits)? {
        Some(4) => {}
        Some(n) => return Err(q.wrong(bits, &n.into(), "4, the bits of AWQ")),
        None => return Err(q.missing(bits, "4, the bits of AWQ")),
    }
    if q.bool("zero_point")? == Some(false) {
        return Err(q.wrong("zero_point", &false.into(), "true, as the GEMM layout has zero points"));
    }
    let version = q.str("version")?.unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        return Err(q.wrong("version", &version.into(), "gemm: other layouts of AWQ are not read"));
    }
    Ok((Method::Awq(group), format!("AWQ 4 bit, {}", group_text(group))))
}

fn gptq(q: &Fields<'_>) -> Result<(Method, String), FormatError> {
    let bits = q.required_count("bits")?;
    if ![2, 3, 4, 8].contains(&bits) {
        return Err(q.wrong("bits", &bits.into(), "2, 3, 4 or 8"));
    }
    let group = group_size(q, "group_size")?;
    let key = if q.has_key("checkpoint_format") { "checkpoint_format" } else { "format" };
    let is_v1 = match q.str(key)? {
        None | Some("gptq") => true,
        Some("gptq_v2") => false,
        Some(other) => return Err(q.wrong(key, &other.into(), "gptq or gptq_v2")),
    };
    if q.bool("is_marlin_format")? == Some(true) {
        return Err(q.wrong("is_marlin_format", &true.into(), "false: the layout of that kernel is not read"));
    }
    if let Some(dtype) = q.str("pack_dtype")?.filter(|d| *d != "int32") {
        return Err(q.wrong("pack_dtype", &dtype.into(), "int32"));
    }
    if let Some(dynamic) = q.get("dynamic").filter(|d| d.as_object().is_none_or(|o| !o.is_empty())) {
        return Err(q.wrong("dynamic", dynamic, "the same bits and group size for all modules"));
    }
    let (symmetric, ordered) = (q.bool("sym")?.unwrap_or(false), q.bool("desc_act")?.unwrap_or(false));
    let order = if ordered { ", act-order" } else { "" };
    let sides = if symmetric { "symmetric" } else { "asymmetric" };
    let name = format!("GPTQ {bits} bit, {}, {sides}{order}", group_text(group));
    Ok((Method::Gptq(Gptq { bits, group, symmetric, ordered, is_v1 }), name))
}

fn bitsandbytes(q: &Fields<'_>) -> Result<(Method, String), FormatError> {
    let four = q.bool("load_in_4bit")?.or(q.bool("_load_in_4bit")?).unwrap_or(false);
    let eight = q.bool("load_in_8bit")?.or(q.bool("_load_in_8bit")?).unwrap_or(false);
    match (four, eight) {
        (true, false) => {
            let kind = q.str("bnb_4bit_quant_type")?.unwrap_or("fp4");
            if !["nf4", "fp4"].contains(&kind) {
                return Err(q.wrong("bnb_4bit_quant_type", &kind.into(), "nf4 or fp4"));
            }
            let double = q.bool("bnb_4bit_use_double_quant")?.unwrap_or(false);
            let double = if double { ", scales quantized too" } else { "" };
            Ok((Method::Nf4Fp4, format!("bitsandbytes {}{double}", kind.to_uppercase())))
        }
        (false, true) => Ok((Method::Int8Rows, "bitsandbytes LLM.int8()".into())),
        _ => Err(q.missing("load_in_4bit", "either load_in_4bit or load_in_8bit as true")),
    }
}

fn fp8(q: &Fields<'_>, method: &str) -> Result<(Method, String), FormatError> {
    if let Some(fmt) = q.str("fmt")?.filter(|f| *f != "e4m3") {
        return Err(q.wrong("fmt", &fmt.into(), "e4m3"));
    }
    let block = match q.array("weight_block_size")? {
        None => None,
        Some(items) => Some(block_size(q, "weight_block_size", items)?),
    };
    let text = block.map_or(String::new(), |(rows, cols)| format!(", blocks of {rows} × {cols}"));
    let name = if method == "fp8" { "FP8 E4M3" } else { "FP8 E4M3 (fbgemm)" };
    Ok((Method::Fp8(block), format!("{name}{text}")))
}

fn block_size(q: &Fields<'_>, key: &str, items: &[serde_json::Value]) -> Result<(usize, usize), FormatError> {
    let count = |v: &serde_json::Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    match items {
        [rows, cols] if count(rows).is_some() && count(cols).is_some() => {
            Ok((count(rows).unwrap_or(1), count(cols).unwrap_or(1)))
        }
        _ => Err(q.wrong(key, &items.to_vec().into(), "two sizes, such as [128, 128]")),
    }
}

/// Forms of compressed-tensors that are read.
const COMPRESSED: [&str; 5] =
    ["pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision"];

fn compressed(q: &Fields<'_>) -> Result<(Method, String), FormatError> {
    let format = q.str("format")?.unwrap_or("");
    if !COMPRESSED.contains(&format) {
        return Err(q.wrong("format", &format.into(), COMPRESSED.join(", ")));
    }
    if let Some(status) = q.str("quantization_status")?.filter(|s| *s != "compressed") {
        return Err(q.wrong("quantization_status", &status.into(), "compressed"));
    }
    if let Some(sparsity) = q.object("sparsity_config")?
        && let Some(form) = sparsity.str("format")?.filter(|f| *f != "dense")
    {
        return Err(sparsity.wrong("format", &form.into(), "dense: sparse weights are not read"));
    }
    let Some(all) = q.object("config_groups")? else {
        return Err(q.missing("config_groups", "an object of groups of modules"));
    };
    let mut groups = Vec::new();
    for key in all.keys() {
        let group = all.object(key)?.ok_or_else(|| all.missing(key, "an object"))?;
        if let Some(form) = group.str("format")?.filter(|f| !COMPRESSED.contains(f)) {
            return Err(group.wrong("format", &form.into(), COMPRESSED.join(", ")));
        }
        let Some(weights) = group.object("weights")? else { continue };
        groups.push(compressed_group(&weights)?);
    }
    let Some(first) = groups.first() else {
        return Err(q.missing("config_groups", "a group with `weights`"));
    };
    let kind = if first.is_float { "FP" } else { "INT" };
    let shared = match first.strategy {
        Strategy::Tensor => "a scale for each matrix".into(),
        Strategy::Channel => group_text(None),
        Strategy::Group(size) => group_text(Some(size)),
        Strategy::Block(rows, cols) => format!("blocks of {rows} × {cols}"),
    };
    let sides = if first.symmetric { "" } else { ", asymmetric" };
    Ok((
        Method::Compressed(groups.clone()),
        format!("compressed-tensors {format}, {kind}{}, {shared}{sides}", first.bits),
    ))
}

fn compressed_group(w: &Fields<'_>) -> Result<CompressedGroup, FormatError> {
    let (bits, kind) = (w.required_count("num_bits")?, w.str("type")?.unwrap_or("int"));
    let is_float = match (kind, bits) {
        ("int", 4 | 8) => false,
        ("float", 8) => true,
        ("int" | "float", _) => return Err(w.wrong("num_bits", &bits.into(), "4 or 8 (for floats: 8)")),
        _ => return Err(w.wrong("type", &kind.into(), "int or float")),
    };
    let group = match w.get("group_size") {
        None => None,
        Some(_) => group_size(w, "group_size")?,
    };
    let strategy = match (w.str("strategy")?, group) {
        (Some("tensor"), _) => Strategy::Tensor,
        (Some("channel"), _) | (None, None) | (Some("group"), None) => Strategy::Channel,
        (Some("group") | None, Some(size)) => Strategy::Group(size),
        (Some("block"), _) => {
            let items = w.array("block_structure")?.ok_or_else(|| w.missing("block_structure", "two sizes"))?;
            let (rows, cols) = block_size(w, "block_structure", items)?;
            Strategy::Block(rows, cols)
        }
        (Some(other), _) => return Err(w.wrong("strategy", &brief(other).into(), "tensor, channel, group or block")),
    };
    Ok(CompressedGroup { bits, is_float, symmetric: w.bool("symmetric")?.unwrap_or(true), strategy })
}
