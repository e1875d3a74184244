//! Converts a model to GGUF: `cargo run --release -p pelton-formats --example to_gguf -- MODEL OUT.gguf Q8_0`.

use std::path::Path;

use pelton_quant::DType;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, out, dtype] = args.as_slice() else {
        return Err("usage: to_gguf MODEL OUT.gguf TYPE".into());
    };
    let dtype = DType::from_name(dtype).ok_or("TYPE is a GGUF type such as BF16 or Q8_0")?;
    let files = pelton_formats::open(Path::new(model))?;
    let report = pelton_formats::write_gguf(&files, Path::new(out), |_, _| dtype)?;
    for note in &report.notes {
        println!("{note}");
    }
    println!("{} tensors, {} bytes", report.tensors.len(), report.bytes);
    Ok(())
}
