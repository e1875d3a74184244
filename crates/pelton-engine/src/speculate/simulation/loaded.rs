//! The same where answers end and new prompts come in their place: most steps read prompts, too.

use super::*;

/// Answers of so many tokens on `n` places; each that ends makes place for a prompt.
#[derive(Clone, Copy)]
struct Load {
    n: usize,
    answer: usize,
    prompt: usize,
}

/// What a place does next.
#[derive(Clone, Copy)]
enum Place {
    Reads,
    Decodes(usize),
}

struct Outcome {
    seconds: f64,
    tokens: usize,
    /// Drafts in steps with prompts, and in others.
    beside: usize,
    apart: usize,
}

/// Runs some 100 answers for each place, which begin one after the other; `speculates` or not.
fn run(target: Curve, load: Load, accepts: Accepts, noise: f64, speculates: bool) -> Outcome {
    let mut random = Random(0x0dd0_5eed_1234_5677);
    let mut controller = Controller::new(&[None], 2.0, 64);
    let mut record = Record::default();
    let mut own = vec![Outcomes::default(); load.n];
    let mut places: Vec<Place> = (0..load.n).map(|i| Place::Decodes(1 + i * load.answer / load.n)).collect();
    let mut out = Outcome { seconds: 0.0, tokens: 0, beside: 0, apart: 0 };
    let mut step = 0;
    while out.tokens < 100 * load.answer * load.n {
        step += 1;
        let decoding: Vec<usize> = (0..load.n).filter(|&i| matches!(places[i], Place::Decodes(_))).collect();
        let (n, prompts) = (decoding.len(), (load.n - decoding.len()) * load.prompt);
        let outlook = |&i: &usize| {
            let Place::Decodes(left) = places[i] else { unreachable!("it decodes") };
            let survival = survival_of(&vec![2; MAX_DRAFT.min(left - 1)], &record.of_classes(&own[i]));
            let prospect = (left > 1).then_some(Prospect { survival, behind: 0 });
            Outlook { prospects: vec![prospect], remaining: left as f64 }
        };
        let order = match prompts {
            _ if !speculates => Order::nothing(n),
            0 if controller.may_look(n) => {
                let outlooks: Vec<Outlook> = decoding.iter().map(outlook).collect();
                controller.choose(&outlooks, MAX_DRAFT)
            }
            1.. if controller.may_look_beside(n, prompts) => {
                let outlooks: Vec<Outlook> = decoding.iter().map(outlook).collect();
                controller.choose_beside(&outlooks, prompts, MAX_DRAFT)
            }
            _ => Order::nothing(n),
        };
        let x: usize = order.picks.iter().flatten().map(|&(_, len)| len).sum();
        *if prompts > 0 { &mut out.beside } else { &mut out.apart } += x;
        // Prompts take most of the time: were they noisy, nothing else could be seen.
        let seconds = target(n + prompts + x) + target((n + x).max(1)) * noise * (2.0 * random.next() - 1.0);
        out.seconds += seconds;
        let mut accepted = 0;
        for (&i, pick) in decoding.iter().zip(&order.picks) {
            let len = pick.map_or(0, |(_, len)| len);
            let tried = (0..len).take_while(|&p| accepts(0, step, p, random.next())).count();
            if len > 0 {
                record.note(&mut own[i], &vec![2; len], tried, tried < len);
                let survival = record.survival(&Outcomes::default(), MAX_DRAFT);
                controller.note_drafts(0, tried, &survival, n);
            }
            accepted += tried;
            let Place::Decodes(left) = &mut places[i] else { unreachable!("it decodes") };
            *left = left.saturating_sub(1 + tried);
        }
        out.tokens += load.n + accepted;
        for (place, own) in places.iter_mut().zip(&mut own) {
            *place = match *place {
                // A prompt gives the first token.
                Place::Reads if load.answer > 1 => Place::Decodes(load.answer - 1),
                Place::Reads | Place::Decodes(0) => {
                    *own = Outcomes::default();
                    Place::Reads
                }
                on => on,
            };
        }
        match (n, prompts) {
            (0, _) => controller.note_prompts(prompts, seconds),
            (_, 0) => {
                controller.note_step(n, x, n + accepted, seconds, 0.0);
            }
            _ => {
                controller.note_beside(n, prompts, (x, accepted), seconds);
            }
        }
    }
    out
}

/// Tokens a second with drafts over those without.
fn speedup(target: Curve, load: Load, accepts: Accepts, noise: f64) -> (f64, Outcome) {
    let rate = |out: &Outcome| out.tokens as f64 / out.seconds;
    let plain = run(target, load, accepts, noise, false);
    let ours = run(target, load, accepts, noise, true);
    (rate(&ours) / rate(&plain), ours)
}

const LOADS: [Load; 4] = [
    Load { n: 1, answer: 30, prompt: 100 },
    Load { n: 4, answer: 60, prompt: 40 },
    Load { n: 8, answer: 17, prompt: 160 },
    Load { n: 16, answer: 4, prompt: 200 },
];

#[test]
fn it_never_loses_beside_prompts_whatever_drafts_do() {
    for (name, accepts) in ADVERSARIES {
        for target in [flat as Curve, steep, stairs, embedded] {
            for load @ Load { n, answer, .. } in LOADS {
                for noise in [0.02, 0.15] {
                    let (share, out) = speedup(target, load, accepts, noise);
                    println!(
                        "{name}, {n} answers of {answer}: {share:.3}, drafts {} beside, {} apart",
                        out.beside, out.apart
                    );
                    assert!(share > 0.98, "{name}: {share:.3} of plain, {n} answers of {answer}, noise {noise}");
                }
            }
        }
    }
}

#[test]
fn good_drafts_run_beside_prompts_where_steps_without_any_follow() {
    let accepts = |_: usize, _: usize, _: usize, draw: f64| draw < 0.8;
    let (share, out) = speedup(flat, Load { n: 4, answer: 60, prompt: 40 }, accepts, 0.05);
    assert!(share > 1.3 && out.beside > 100, "{share:.2}, {} drafts beside prompts", out.beside);
    // Eight rows cost twice what four do, sixteen hardly more than eight: steps with prompts tell that before any is tried.
    let (share, out) = speedup(embedded, Load { n: 4, answer: 60, prompt: 40 }, accepts, 0.05);
    assert!(share > 1.1 && out.beside > 100, "{share:.2}, {} drafts beside prompts", out.beside);
    // With 16 places and answers of four tokens there is always a prompt: a row that saves a row is not worth it.
    let (_, out) = speedup(steep, Load { n: 16, answer: 4, prompt: 200 }, accepts, 0.05);
    assert!(out.beside < 20, "{} drafts beside prompts, {} in other steps", out.beside, out.apart);
}

#[test]
fn where_prompts_set_in_for_good_drafting_ends() {
    let (n, prompts, mut random) = (16, 200, Random(0x5eed_0dd0_1234_5677));
    let mut controller = Controller::new(&[None], 0.0, 64);
    // What steps cost is known, and there is much in the account.
    for _ in 0..200 {
        controller.note_step(n, 8, 2 * n, flat(n + 8), 0.0);
        controller.note_step(n, 0, n, flat(n), 0.0);
    }
    let mut record = Record::default();
    let (mut rows, mut seconds) = (0, 0.0);
    for _ in 0..2000 {
        let survival = survival_of(&[2; 4], &record.of_classes(&Outcomes::default()));
        let outlook = Outlook { prospects: vec![Some(Prospect { survival, behind: 0 })], remaining: 50.0 };
        let order = match controller.may_look_beside(n, prompts) {
            true => controller.choose_beside(&vec![outlook; n], prompts, MAX_DRAFT),
            false => Order::nothing(n),
        };
        let (mut x, mut accepted) = (0, 0);
        for &(_, len) in order.picks.iter().flatten() {
            let tried = (0..len).take_while(|_| random.next() < 0.4).count();
            record.note(&mut Outcomes::default(), &vec![2; len], tried, tried < len);
            (x, accepted) = (x + len, accepted + tried);
        }
        let step = flat(n + prompts + x);
        controller.note_beside(n, prompts, (x, accepted), step);
        (rows, seconds) = (rows + n + prompts + accepted, seconds + step);
    }
    // Rows that were of use, prompts' or tokens', over those of plain steps in the same time.
    let share = rows as f64 / (n + prompts) as f64 * flat(n + prompts) / seconds;
    assert!(share > 0.995, "{share:.3} of plain");
}
