//! The README's table of formats is what the code does: every type of GGUF that is read, made and compensated.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pelton_quant::{DType, Steps};

/// The cells of the rows of the table of formats.
fn rows() -> Vec<[String; 4]> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(path).expect("the README is there");
    let header = "| format | loads from | makes | `--gptq` |";
    let (_, table) = readme.split_once(header).expect("the table of formats has its columns");
    let lines = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cells =
        |line: &str| -> Vec<String> { line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect() };
    lines.map(|line| cells(line).try_into().unwrap_or_else(|_| panic!("four cells: {line}"))).collect()
}

#[test]
fn every_type_of_gguf_is_in_the_table_with_what_can_be_done_with_it() {
    let rows = rows();
    let mut documented: BTreeMap<&str, &[String; 4]> = BTreeMap::new();
    for row in rows.iter().filter(|row| row[1].contains("GGUF")) {
        for name in row[0].split(", ") {
            let dtype = DType::from_name(name).unwrap_or_else(|| panic!("{name} is no type of GGUF"));
            assert!(documented.insert(dtype.name(), row).is_none(), "{name} is there twice");
        }
    }
    let decoded: BTreeSet<&str> = DType::DECODABLE.iter().map(|dtype| dtype.name()).collect();
    assert_eq!(documented.keys().copied().collect::<BTreeSet<_>>(), decoded, "types that are read");
    for (name, [_, _, makes, gptq]) in documented {
        let dtype = DType::from_name(name).unwrap();
        assert_eq!(makes.starts_with("yes"), dtype.can_encode(), "makes {name}: {makes}");
        assert_eq!(gptq == "yes", Steps::known(dtype), "--gptq for {name}: {gptq}");
    }
}
