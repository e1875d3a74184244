//! `pelton imatrix`: how much each weight counts, from a text.

use pelton_quantize::record;

use crate::Usage;
use crate::args::ImatrixArgs;
use crate::commands::quantize::{read_text, usage};
use crate::progress::Progress;
use crate::setup::Context;
use crate::term::print_line;

pub(crate) fn run(args: &ImatrixArgs, context: &Context) -> anyhow::Result<()> {
    let model = context.open(Some(&args.model))?;
    let mut ids = read_text(&model, &args.text)?;
    if let Some(most) = args.chunks {
        ids.truncate(most.saturating_mul(args.chunk));
    }
    if args.out.is_dir() {
        return Err(Usage(format!("{}: is a folder; name a file", args.out.display())).into());
    }
    let bar = Progress::items(context.quiet);
    bar.message("recording");
    let recorded = record::record(&model, &ids, args.chunk, args.threads, &mut |done, all| {
        bar.set(done as u64, all as u64);
    });
    drop(bar);
    let mut recorded = recorded.map_err(usage)?;
    recorded.imatrix.datasets = vec![args.text.display().to_string()];
    recorded.imatrix.write(&args.out).map_err(usage)?;
    if !recorded.left_out.is_empty() {
        let (n, first) = (recorded.left_out.len(), &recorded.left_out[0]);
        context.note(&format!("{n} matrices are not recorded (experts are not): {first}, …"));
    }
    let (matrices, chunks) = (recorded.imatrix.len(), recorded.imatrix.chunks);
    if args.json {
        let object = serde_json::json!({
            "out": args.out, "matrices": matrices, "chunks": chunks, "chunk": args.chunk, "left_out": recorded.left_out,
        });
        return Ok(print_line(&object.to_string())?);
    }
    let out = args.out.display();
    Ok(print_line(&format!("{out}: {matrices} matrices, {chunks} chunks of {} tokens", args.chunk))?)
}
