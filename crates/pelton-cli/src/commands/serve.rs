//! `pelton serve`: models over HTTP until SIGTERM or Ctrl-C.
//!
//! Invariant: the log goes to stderr, a line at a time; what the server listens on is its first line, and is printed
//! even where people asked for quiet: without it nobody could ask.

use std::sync::Arc;
use std::time::Duration;

use pelton::{ModelRef, Options};
use pelton_server::{Keys, LogSink, ModelOptions, ModelSource, RouteSource, Server, ServerError, ServerOptions};

use crate::Usage;
use crate::args::ServeArgs;
use crate::commands::route;
use crate::input::read_file;
use crate::setup::{Context, require};
use crate::term;

/// What clients call the two models of `--route` together.
const ROUTE_NAME: &str = "auto";

pub(crate) fn run(args: &ServeArgs, context: &Context) -> anyhow::Result<()> {
    let models = models(args, context)?;
    let options = options(args, context)?;
    allow_many_files();
    let server = Server::bind(options, models).map_err(blame)?;
    term::note(&format!("listening on http://{}", server.address()));
    server.run().map_err(blame)
}

/// What cannot succeed as it was typed, as such.
fn blame(error: ServerError) -> anyhow::Error {
    match error {
        ServerError::Options(message) => Usage(message).into(),
        ServerError::Model { kind: pelton::ErrorKind::Usage, .. } => Usage(error.to_string()).into(),
        other => other.into(),
    }
}

/// The models with their names.
fn models(args: &ServeArgs, context: &Context) -> anyhow::Result<ModelOptions> {
    let mib = |n: usize| (n as u64).saturating_mul(1 << 20);
    let engine = &args.engine;
    let options = Options {
        context: engine.context,
        max_seqs: args.parallel,
        max_waiting: args.queue,
        steady_streams: true,
        prefix_cache: !engine.no_prefix_cache,
        speculation: context.speculation(&engine.drafts)?,
        prefix_cache_dir: args.prefix_cache_dir.clone(),
        prefix_cache_bytes: mib(args.prefix_cache_size),
        memory: args.memory.map(mib),
        require: require(engine)?,
        cache_packed: if engine.cache_packed { Some(context.packed_folder()?) } else { None },
        ..context.compute_options(&engine.compute)
    };
    let mut sources = Vec::new();
    let mut store = None;
    for typed in &args.model {
        let (name, model) = split_name(typed);
        let (model, found) = context.find(Some(model))?;
        store = store.or(found);
        sources.push(ModelSource { id: name.unwrap_or_else(|| id_of(&model)), model, options: options.clone() });
    }
    let route = route::typed(&args.route, context)?;
    let route = match route {
        None => None,
        Some((pair, rules)) => {
            // Only the small model's files say whether it has the context that is asked for.
            let wanted = options.context.max(options.require.context);
            let for_small = match wanted {
                Some(_) => context.options_of_small(&context.open(Some(&pair.small))?, options.clone()),
                None => options.clone(),
            };
            let mut source = |name: &str, options: &Options| -> anyhow::Result<String> {
                let (model, found) = context.find(Some(name))?;
                store = store.take().or(found);
                // One that --model names already keeps that name.
                if let Some(known) = sources.iter().find(|known| known.model == model) {
                    return Ok(known.id.clone());
                }
                let id = id_of(&model);
                sources.push(ModelSource { id: id.clone(), model, options: options.clone() });
                Ok(id)
            };
            // The large one is the default of what is not routed; without --model it is loaded at the start.
            let (large, small) = (source(&pair.large, &options)?, source(&pair.small, &for_small)?);
            Some(RouteSource { id: ROUTE_NAME.into(), small, large, rules })
        }
    };
    if sources.is_empty() {
        let id = id_of(&ModelRef::Embedded);
        sources.push(ModelSource { id, model: ModelRef::Embedded, options });
    }
    Ok(ModelOptions {
        sources,
        store: store.map(Arc::new),
        route,
        idle_unload: args.idle_unload.map(|s| Duration::from_secs(s as u64)),
        memory: args.memory.map(mib),
    })
}

/// `NAME=MODEL`, unless the whole is there as a file.
fn split_name(typed: &str) -> (Option<String>, &str) {
    match typed.split_once('=') {
        Some((name, model))
            if !name.is_empty() && !name.contains(['/', '\\']) && !std::path::Path::new(typed).exists() =>
        {
            (Some(name.to_string()), model)
        }
        _ => (None, typed),
    }
}

/// What clients call a model that was given no name.
fn id_of(model: &ModelRef) -> String {
    match model {
        ModelRef::Embedded => pelton::DEFAULT_NAME.to_string(),
        ModelRef::EmbeddedDraft => pelton::DRAFT_NAME.to_string(),
        ModelRef::Path(path) => {
            let stem = path.file_stem().filter(|_| path.extension().is_some_and(|e| e == "gguf"));
            stem.or(path.file_name()).unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
        }
        ModelRef::Hub(spec) => spec.to_string(),
    }
}

fn options(args: &ServeArgs, context: &Context) -> anyhow::Result<ServerOptions> {
    let typed = args.api_key.iter().cloned().chain(context.environment.api_key.clone());
    let mut keys = Keys::new(typed).map_err(Usage)?;
    if let Some(file) = &args.api_key_file {
        let text = read_file(file, context)?;
        keys = keys.and(Keys::parse(&text).map_err(|e| Usage(format!("{}: {e}", file.display())))?);
    }
    let quiet = context.quiet;
    let log: LogSink = Arc::new(move |line| {
        if !quiet {
            term::note(line);
        }
    });
    let seconds = |n: usize| Duration::from_secs(n as u64);
    Ok(ServerOptions {
        address: (args.host, args.port).into(),
        keys,
        insecure_no_auth: args.insecure_no_auth,
        cors_origins: args.cors_origin.clone(),
        share_prefixes: args.share_prefixes,
        ceilings: Some(
            pelton::quick_ceilings(&context.compute_options(&args.engine.compute)).map_err(|e| context.blame(e))?,
        ),
        key_concurrency: args.key_concurrency,
        max_connections: args.max_connections,
        max_body: args.max_body << 20,
        read_timeout: seconds(args.read_timeout),
        write_timeout: seconds(args.write_timeout),
        deadline: args.deadline.map(seconds),
        drain: Duration::from_secs(args.drain),
        page: !args.no_page,
        log_prompts: args.log_prompts,
        log_cache: args.log_cache,
        log,
    })
}

/// Each connection is a file handle, and the usual limit of 1,024 is soft: raises it as far as the system lets us.
#[cfg(unix)]
fn allow_many_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where this is refused, connections beyond the limit wait.
    let _ = setrlimit(Resource::Nofile, limit);
}

#[cfg(not(unix))]
fn allow_many_files() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_takes_models_that_are_named_already() {
        use clap::Parser;

        let typed = |more: &[&str]| {
            let route = ["--route", "small=pelton-draft,large=pelton-tiny"];
            let typed = crate::args::Cli::try_parse_from([&["pelton", "serve"], &route[..], more].concat()).unwrap();
            let crate::args::Command::Serve(args) = typed.command else { panic!("{:?}", typed.command) };
            let models = models(&args, &Context::new(crate::environment::Environment::read(), true)).unwrap();
            let route = models.route.unwrap();
            let contexts = models.sources.iter().map(|source| source.options.context).collect::<Vec<_>>();
            let ids: Vec<String> = models.sources.into_iter().map(|source| source.id).collect();
            ((ids.join(" "), route.small, route.large), contexts)
        };
        let expected = |ids: &str, large: &str| (ids.to_string(), "pelton-draft".to_string(), large.to_string());
        assert_eq!(typed(&[]).0, expected("pelton-tiny pelton-draft", "pelton-tiny"));
        assert_eq!(typed(&["-m", "big=pelton-tiny"]).0, expected("big pelton-draft", "big"));
        assert_eq!(typed(&["-m", "pelton-draft"]).0, expected("pelton-draft pelton-tiny", "pelton-tiny"));
        // The small one takes as much of the context as it has.
        assert_eq!(
            (typed(&["-c", "512"]).1, typed(&["-c", "4096"]).1),
            (vec![Some(512); 2], vec![Some(4096), Some(1024)])
        );
    }

    #[test]
    fn names_are_split_off() {
        assert_eq!(split_name("tiny=pelton-tiny"), (Some("tiny".to_string()), "pelton-tiny"));
        assert_eq!(split_name("pelton-tiny"), (None, "pelton-tiny"));
        assert_eq!(split_name("./a=b.gguf"), (None, "./a=b.gguf"));
        assert_eq!(id_of(&ModelRef::Path("/x/Some.Model-Q4.gguf".into())), "Some.Model-Q4");
        assert_eq!(id_of(&ModelRef::Path("/x/folder".into())), "folder");
    }
}
