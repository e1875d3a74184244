//! A split of references gives the bits of one reference, wherever weights and layers are.

use crate::conformance::{Suite, Tolerances, batch_invariance};
use crate::{Backend, KvLayout, KvType, Place, Reference, Split, SplitPlan};

/// For the conformance suite's pools, of two layers.
fn split(on_cards: &[usize]) -> Split<Reference, Reference> {
    let plan =
        SplitPlan { n_layers: 2, on_cards: on_cards.to_vec(), head_on_card: on_cards.iter().sum::<usize>() == 2 };
    Split::new(on_cards.iter().map(|_| Reference).collect(), Reference, plan)
}

#[test]
fn every_op_gives_the_bits_of_its_parts_wherever_things_are() {
    let suite = Suite::new(Tolerances::default());
    let bare = suite.outputs(&mut Reference);
    // The suite shares norms between its two layers, which are in one part here; models never do, and the fixtures are
    // split at every layer.
    for on_cards in [vec![0], vec![2], vec![0, 2]] {
        let mut split = split(&on_cards);
        split.load_for(Place::Layer { index: 1, of: 2 });
        assert!(suite.outputs(&mut split) == bare, "{on_cards:?}");
    }
    // Each weight in another part than the last one: ops find what they read elsewhere.
    let suite = Suite::without_layers();
    let mut scattered = split(&[1, 0]);
    scattered.goes_round = true;
    assert!(suite.outputs(&mut scattered) == suite.outputs(&mut Reference));
    assert_eq!(batch_invariance(&mut split(&[2])), []);
}

#[test]
fn a_plan_puts_the_first_layers_on_cards_and_the_head_after_the_last() {
    let plan = |on_cards: &[usize], head_on_card| SplitPlan { n_layers: 28, on_cards: on_cards.to_vec(), head_on_card };
    assert_eq!(plan(&[21], false).ranges(), [0..21, 21..28]);
    assert_eq!(plan(&[10, 0, 18], true).ranges(), [0..10, 10..10, 10..28, 28..28]);
    let layer = |index| Place::Layer { index, of: 28 };
    let two = plan(&[10, 11], false);
    assert_eq!([0, 9, 10, 20, 21, 27].map(|i| two.part_of(layer(i))), [0, 0, 1, 1, 2, 2]);
    assert_eq!(two.part_of(Place::Head { of: 28 }), 2);
    assert_eq!(plan(&[10, 18], true).part_of(Place::Head { of: 28 }), 1);
    assert_eq!(plan(&[28, 0], true).part_of(Place::Head { of: 28 }), 0);
    // Another model: a draft.
    assert_eq!(plan(&[28], true).part_of(Place::Layer { index: 0, of: 4 }), 1);
    assert_eq!(plan(&[28], true).part_of(Place::Head { of: 4 }), 1);
}

#[test]
fn a_page_is_that_of_all_parts_and_goes_back_to_each() {
    let plan = SplitPlan { n_layers: 5, on_cards: vec![2, 1], head_on_card: false };
    let mut b = Split::new(vec![Reference, Reference], Reference, plan);
    let layout = KvLayout { n_layers: 5, n_kv_heads: 1, head_dim: 8, n_pages: 3, dtype: KvType::F32 };
    let mut kv = b.kv_pool(&layout).unwrap();
    let whole = Reference.kv_pool(&layout).unwrap();
    assert_eq!(b.page_bytes(&kv), Reference.page_bytes(&whole));
    let page: Vec<u8> = (0..b.page_bytes(&kv)).map(|i| (i % 64) as u8).collect();
    b.write_page(&mut kv, 1, &page);
    b.copy_page(&mut kv, 1, 2);
    let mut back = Vec::new();
    b.read_page(&kv, 2, &mut back);
    assert!(back == page);
    b.read_page(&kv, 0, &mut back);
    assert!(back != page);
    let parts: Vec<usize> = b.parts(5).iter().map(|p| p.first_layer).collect();
    assert_eq!(parts, [0, 2, 3]);
    assert_eq!(b.parts(7).len(), 1);
}
