//! `pelton inspect`: what is in a model.

use pelton::Inspection;

use crate::args::InspectArgs;
use crate::setup::{Context, kv_type};
use crate::term::{bytes, print_line, print_now, thousands};

pub(crate) fn run(args: &InspectArgs, context: &Context) -> anyhow::Result<()> {
    let model = context.open(args.model.as_deref())?;
    let inspection = Inspection::new(&model, args.context, args.batch, kv_type(args.kv_type))?;
    let packed = context.path_of(args.model.as_deref())?.map_or(0, |path| context.packed_bytes(&path));
    if args.json {
        let mut object = serde_json::to_value(&inspection)?;
        object["packed_bytes"] = packed.into();
        return Ok(print_line(&serde_json::to_string_pretty(&object)?)?);
    }
    print_now(&describe(&inspection))?;
    if packed > 0 {
        context.note(&format!("packed weights are kept: {} (`pelton rm --packed` removes them)", bytes(packed)));
    }
    if args.verbose {
        print_now(&details(&inspection))?;
    }
    Ok(())
}

fn describe(i: &Inspection) -> String {
    let mut rows = vec![
        ("model", format!("{} ({}, {})", i.name, i.architecture, i.format)),
        ("file", files(i)),
        ("parameters", format!("{} ({:.2} bits a weight)", thousands(i.parameters), i.bits_per_weight)),
        ("layers", format!("{} × hidden {}, ffn {}", i.n_layers, i.hidden, i.ffn)),
        ("heads", format!("{} query, {} key/value, {} wide", i.n_heads, i.n_kv_heads, i.head_dim)),
    ];
    if let Some(quantization) = &i.quantization {
        rows.insert(3, ("quantized", quantization.clone()));
    }
    if let Some((n, used)) = i.experts {
        rows.push(("experts", format!("{n}, {used} a token")));
    }
    if let Some((layers, window)) = i.sliding_window {
        rows.push(("window", format!("{window} tokens in {layers} of {} layers", i.n_layers)));
    }
    rows.push(("rope", i.rope.clone()));
    rows.push(("context", format!("{} tokens", thousands(i.max_context))));
    let tied = if i.tied_embeddings { ", head tied to the embedding" } else { "" };
    rows.push(("vocabulary", format!("{}{tied}", thousands(i.vocab_size))));
    rows.push(("tokenizer", i.tokenizer.clone().unwrap_or_else(|| "none: the model takes ids only".into())));
    let specials: Vec<String> = i.special_tokens.iter().take(12).map(|(id, t)| format!("{t} {id}")).collect();
    let more = i.special_tokens.len().saturating_sub(12);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    if !specials.is_empty() {
        rows.push(("special", format!("{}{more}", specials.join(", "))));
    }
    rows.push(("ends at", i.eos.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")));
    let template = i.chat_template.as_ref();
    rows.push((
        "template",
        template.map_or("none".into(), |t| format!("{} characters (-v prints it)", t.chars().count())),
    ));
    let kv = format!("{} a token in {}", bytes(i.kv_bytes_per_token as u64), i.kv_type);
    rows.push(("KV cache", kv));
    let plan = format!(
        "{} with {} × {} tokens ({} of it KV)",
        bytes(i.memory_bytes),
        i.batch,
        thousands(i.context),
        bytes(i.kv_bytes as u64)
    );
    rows.push(("memory", plan));
    let mut out: String = rows.iter().map(|(key, value)| format!("{key:<11} {value}\n")).collect();
    out.push_str("\ntensors\n");
    let width = i.tensors.iter().map(|g| g.role.len()).max().unwrap_or(0);
    let types = i.tensors.iter().map(|g| g.dtype.len()).max().unwrap_or(0).max(6);
    for g in &i.tensors {
        let size = bytes(g.bytes as u64);
        out.push_str(&format!(
            "  {:<width$}  {:<types$} × {:<4} {:>14} weights  {size:>10}\n",
            g.role,
            g.dtype,
            g.count,
            thousands(g.elements)
        ));
    }
    if !i.unused_tensors.is_empty() {
        out.push_str(&format!("\nnot used: {}\n", i.unused_tensors.join(", ")));
    }
    out
}

fn files(i: &Inspection) -> String {
    let size = bytes(i.file_bytes);
    let built_in = [pelton::DEFAULT_NAME, pelton::DRAFT_NAME].iter().any(|name| i.files == [*name]);
    if built_in { format!("built into pelton ({size})") } else { format!("{} ({size})", i.files.join(", ")) }
}

fn details(i: &Inspection) -> String {
    let mut out = String::from("\nmetadata\n");
    for (key, value) in &i.metadata {
        out.push_str(&format!("  {key} = {value}\n"));
    }
    if let Some(template) = &i.chat_template {
        out.push_str(&format!("\nchat template\n{template}\n"));
    }
    out
}
