//! Norms that quantize besides: the bits of a norm and a layer that know nothing of each other, and never old rows.

use pelton_backend::Backend;

use super::*;
use crate::tensor::Tensor;
use crate::{Cpu, CpuOptions};

fn tensor(rows: usize, values: &[f32]) -> Tensor {
    let mut tensor = Tensor::new(rows, values.len() / rows);
    tensor.data_mut().copy_from_slice(values);
    tensor
}

fn cpu(isa: Isa) -> Cpu {
    Cpu::new(CpuOptions { threads: Some(2), isa: Some(isa.name().into()), ..CpuOptions::default() }).unwrap()
}

/// `x += y` and the norm of it.
fn norm(cpu: &mut Cpu, x: &[f32], y: &[f32], rows: usize, out: &mut Tensor) {
    let k = x.len() / rows;
    let weight = cpu.load_vector(&vec![0.75; k]);
    cpu.add_rms_norm(&mut tensor(rows, x), &tensor(rows, y), &weight, 1e-6, out);
}

fn multiply(cpu: &mut Cpu, linear: &PackedLinear, x: &Tensor) -> Vec<u32> {
    let mut out = Tensor::new(x.rows(), linear.out_features());
    cpu.linear(x, linear, &mut out);
    out.data().iter().map(|v| v.to_bits()).collect()
}

#[test]
fn rows_quantized_behind_a_norm_are_those_quantized_later() {
    const K: usize = 544;
    let mut random = Random(11);
    for isa in Isa::available() {
        let pool = Pool::new(2).unwrap();
        for dtype in [DType::Q8_0, DType::Q4_0, DType::F32] {
            let mut cpu = cpu(isa);
            let weight = weight(dtype, 40, K, &mut random);
            let linear = PackedLinear::pack(&spec(&weight), isa, &pool).unwrap();
            for rows in [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 80] {
                let mut normed = Tensor::new(rows, K);
                // The first norm of a step of so many rows learns what is wanted, the second one does it.
                for turn in 0..3 {
                    let (x, y) = (random.vec(rows * K), random.vec(rows * K));
                    norm(&mut cpu, &x, &y, rows, &mut normed);
                    let name = format!("{} {dtype} {rows} rows, turn {turn}", isa.name());
                    let is_wanted = turn > 0 && dtype != DType::F32;
                    assert_eq!(cpu.linear_scratch().holds(normed.stamp()), is_wanted, "{name}");
                    let expected: Vec<u32> =
                        forward(&linear, normed.data(), rows, &pool).iter().map(|v| v.to_bits()).collect();
                    assert_eq!(multiply(&mut cpu, &linear, &normed), expected, "{name}");
                    // And again, by a second layer that reads the same rows.
                    assert_eq!(multiply(&mut cpu, &linear, &normed), expected, "{name}, read again");
                }
            }
        }
    }
}

#[test]
fn rows_that_were_changed_or_overwritten_are_quantized_again() {
    let mut random = Random(12);
    let (k, rows, isa) = (320, 20, Isa::detect());
    let (mut cpu, pool) = (cpu(isa), Pool::new(1).unwrap());
    let linear = PackedLinear::pack(&spec(&weight(DType::Q8_0, 24, k, &mut random)), isa, &pool).unwrap();
    let expected =
        |x: &Tensor| -> Vec<u32> { forward(&linear, x.data(), x.rows(), &pool).iter().map(|v| v.to_bits()).collect() };
    let (x, y) = (random.vec(rows * k), random.vec(rows * k));
    let (mut first, mut second) = (Tensor::new(rows, k), Tensor::new(rows, k));
    for out in [&mut first, &mut second] {
        norm(&mut cpu, &x, &y, rows, out);
        assert_eq!(multiply(&mut cpu, &linear, out), expected(out));
    }
    // Two norms in a row: the buffers hold the second one's rows.
    norm(&mut cpu, &x, &y, rows, &mut first);
    norm(&mut cpu, &y, &x[..], rows, &mut second);
    second.data_mut()[5] += 1.0;
    assert_eq!(multiply(&mut cpu, &linear, &first), expected(&first), "rows of the norm before the last");
    assert_eq!(multiply(&mut cpu, &linear, &second), expected(&second), "rows that were changed");
    // A layer that reads something else in between takes the buffers.
    norm(&mut cpu, &x, &y, rows, &mut first);
    let other = tensor(rows, &random.vec(rows * k));
    assert_eq!(multiply(&mut cpu, &linear, &other), expected(&other), "rows of no norm");
    assert_eq!(multiply(&mut cpu, &linear, &first), expected(&first), "the norm's, after others");
    // Of another number of rows, and of none.
    let few = tensor(3, &random.vec(3 * k));
    let mut normed = Tensor::new(3, k);
    norm(&mut cpu, few.data(), few.data(), 3, &mut normed);
    assert_eq!(multiply(&mut cpu, &linear, &normed), expected(&normed), "another number of rows");
    multiply(&mut cpu, &linear, &Tensor::new(0, k));
    assert_eq!(multiply(&mut cpu, &linear, &first), expected(&first), "after no rows");
}
