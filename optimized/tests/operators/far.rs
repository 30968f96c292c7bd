//! Offsets beyond 2^31 elements, as a large cache or table has them on a real card: with an operand so far apart, or at the
//! end of so large a cache, the bits are those of the same operand in one piece. A kernel that multiplies 32-bit numbers
//! reads or writes elsewhere. It takes 4 to 13 GB for each, which the emulator does not have.

use std::sync::Arc;

use dsv2_optimized::operators::embedding::embedding;
use dsv2_optimized::operators::gemm::linear;
use dsv2_optimized::operators::latent::latent_cache_write;
use dsv2_optimized::operators::latent_read::{Pages, latent_cache_read};
use dsv2_optimized::operators::mla_decode::{mla_decode, shared};
use dsv2_optimized::operators::mla_prefill::mla_prefill;
use dsv2_optimized::operators::scratch::Scratch;
use dsv2_optimized::{Device, Element, Error, Result, Tensor, Variant};

use crate::harness::{Case, KINDS, OnGpu, Output, output, random, upload};

/// The first offset that a signed 32-bit number does not hold.
const BEYOND: usize = 1 << 31;

pub fn cases() -> Vec<OnGpu> {
    let operators: [(&str, Run); 6] = [
        ("embedding", far_table),
        ("linear", far_matrices),
        ("latent_cache_write", far_slots),
        ("latent_cache_read", read_far_pages),
        ("mla_decode", decode_far_pages),
        ("mla_prefill", far_sequences),
    ];
    let case = |(operator, run): (&str, Run), (element, variant): (Element, Variant)| OnGpu {
        case: Case {
            name: format!("far/{operator}/{variant}/{element}/an offset beyond 2^31 elements"),
            module: "none",
            watched: false,
            run: Box::new(move |device| run(device, element, variant)),
        },
        // Up to half as much again for what lies behind the last row, and the rest.
        needs: Box::new(move |gpu| has_room(gpu, 2 * BEYOND * element.bytes())),
    };
    operators.into_iter().flat_map(|operator| KINDS.into_iter().map(move |kind| case(operator, kind))).collect()
}

type Run = fn(&Arc<dyn Device>, Element, Variant) -> Result<Vec<Output>>;

fn has_room(gpu: &dyn Device, needed: usize) -> Result<()> {
    let (free, _) = gpu.memory()?;
    if free >= needed {
        return Ok(());
    }
    Err(Error::operand("far", "device memory", format!("{needed} bytes"), format!("{free} free")))
}

fn tensor(device: &Arc<dyn Device>, element: Element, name: &str, shape: &[usize]) -> Result<Tensor> {
    upload(device, element, &random(name, shape, 1.0))
}

fn integers(device: &Arc<dyn Device>, shape: &[usize], values: impl IntoIterator<Item = i32>) -> Result<Tensor> {
    Tensor::from_i32(device, shape, &values.into_iter().collect::<Vec<_>>())
}

/// The same numbers, with room between the entries of the first axis: the last begins beyond 2^31 elements.
fn apart(near: &Tensor) -> Result<Tensor> {
    let (device, mut shape) = (near.device(), near.shape().to_vec());
    let entry: usize = shape[1..].iter().product();
    shape[1] *= BEYOND / ((shape[0] - 1) * entry) + 1;
    let far = Tensor::empty(device, near.element(), &shape)?.narrow(1, 0..near.shape()[1])?;
    assert!((shape[0] - 1) * far.strides()[0] >= BEYOND);
    for i in 0..shape[0] {
        let (from, to) = (near.index(0, i)?, far.index(0, i)?);
        device.copy(from.address(), to.address(), entry * near.element().bytes())?;
    }
    Ok(far)
}

/// The same pages at the end of a cache of more than 2^31 elements, and how many come before them.
fn at_the_end(near: &Tensor) -> Result<(Tensor, usize)> {
    let mut shape = near.shape().to_vec();
    let before = BEYOND / shape[1..].iter().product::<usize>() + 1;
    shape[0] += before;
    let far = Tensor::empty(near.device(), near.element(), &shape)?;
    let place = far.narrow(0, before..shape[0])?;
    near.device().copy(near.address(), place.address(), near.len() * near.element().bytes())?;
    Ok((far, before))
}

fn far_table(device: &Arc<dyn Device>, element: Element, variant: Variant) -> Result<Vec<Output>> {
    let table = tensor(device, element, "table", &[40, 24])?;
    let tokens = integers(device, &[3], [39, 0, 38])?;
    let look_up = |table: &Tensor| -> Result<Tensor> {
        let out = output(device, element, &[3, 24])?;
        embedding(variant, &tokens, table, &out).map(|()| out)
    };
    Ok(vec![Output::same("out", &look_up(&apart(&table)?)?, &look_up(&table)?)?])
}

/// One of the three at a time. Few rows have kernels of their own.
fn far_matrices(device: &Arc<dyn Device>, element: Element, variant: Variant) -> Result<Vec<Output>> {
    let mut outputs = vec![];
    for rows in [8, 40] {
        let x = tensor(device, element, "x", &[rows, 64])?;
        let weight = tensor(device, element, "weight", &[40, 64])?;
        let near = output(device, element, &[rows, 40])?;
        linear(variant, &x, &weight, None, &near)?;
        let out = output(device, element, &[rows, 40])?;
        linear(variant, &apart(&x)?, &weight, None, &out)?;
        outputs.push(Output::same("with x apart", &out, &near)?);
        linear(variant, &x, &apart(&weight)?, None, &out)?;
        outputs.push(Output::same("with the weight apart", &out, &near)?);
        let out = apart(&tensor(device, element, "what was there before", &[rows, 40])?)?;
        linear(variant, &x, &weight, None, &out)?;
        outputs.push(Output::same("apart", &out, &near)?);
    }
    Ok(outputs)
}

/// Pages of two tokens, with other layers between them.
fn far_slots(device: &Arc<dyn Device>, element: Element, variant: Variant) -> Result<Vec<Output>> {
    let (tokens, latent, rope, pages) = (3, 12, 4, 3);
    let kv_a = tensor(device, element, "kv_a", &[tokens, latent + rope])?;
    let weight = tensor(device, element, "weight", &[latent])?;
    let table = |name| tensor(device, Element::F32, name, &[tokens, rope / 2]);
    let (cos, sin) = (table("cos")?, table("sin")?);
    let slots = integers(device, &[tokens], [5, 0, 4])?;
    let write = |cache: Tensor| -> Result<Tensor> {
        latent_cache_write(variant, &kv_a, &weight, 1e-6, &cos, &sin, &slots, &cache, None, None, None).map(|()| cache)
    };
    let empty = tensor(device, element, "what was there before", &[pages, 2, latent + rope])?;
    let far = write(apart(&empty)?)?;
    Ok(vec![Output::same("cache", &far, &write(empty)?)?])
}

/// A cache of three pages, and a block table with them in another order, `before` pages after the first.
fn pages(device: &Arc<dyn Device>, element: Element, width: usize) -> Result<Tensor> {
    tensor(device, element, "cache", &[3, 64, width])
}

fn block_table(device: &Arc<dyn Device>, before: usize) -> Result<Tensor> {
    integers(device, &[1, 3], [2, 0, 1].map(|page| (before + page) as i32))
}

fn read_far_pages(device: &Arc<dyn Device>, element: Element, variant: Variant) -> Result<Vec<Output>> {
    let (latent, rope, length) = (512, 64, 150);
    let lengths = integers(device, &[1], [length as i32])?;
    let read = |cache: &Tensor, before| -> Result<[Tensor; 2]> {
        let latents = output(device, element, &[1, length, latent])?;
        let keys = output(device, element, &[1, length, rope])?;
        let block_table = block_table(device, before)?;
        latent_cache_read(variant, &Pages { cache, block_table: &block_table, lengths: &lengths }, &latents, &keys)?;
        Ok([latents, keys])
    };
    let near = pages(device, element, latent + rope)?;
    let [latents, keys] = read(&near, 0)?;
    let (far, before) = at_the_end(&near)?;
    let [far_latents, far_keys] = read(&far, before)?;
    Ok(vec![Output::same("latents", &far_latents, &latents)?, Output::same("keys", &far_keys, &keys)?])
}

fn decode_far_pages(device: &Arc<dyn Device>, element: Element, variant: Variant) -> Result<Vec<Output>> {
    let (heads, latent, rope) = (2, 512, 64);
    let q_latent = tensor(device, element, "q_latent", &[1, 1, heads, latent])?;
    let q_pe = tensor(device, element, "q_pe", &[1, 1, heads, rope])?;
    let lengths = integers(device, &[1], [150])?;
    let (numbers, counters) = shared(variant, [1, 1, heads, latent], rope, 3 * 64);
    let scratch = Scratch::with_counters(device, numbers, counters)?;
    let attend = |cache: &Tensor, before| -> Result<[Tensor; 2]> {
        let out = output(device, element, &[1, 1, heads, latent])?;
        let lse = output(device, Element::F32, &[1, 1, heads])?;
        let table = block_table(device, before)?;
        mla_decode(variant, &q_latent, &q_pe, cache, &table, &lengths, None, 0.05, &scratch, &out, &lse)?;
        Ok([out, lse])
    };
    let near = pages(device, element, latent + rope)?;
    let [out, lse] = attend(&near, 0)?;
    let (far, before) = at_the_end(&near)?;
    let [far_out, far_lse] = attend(&far, before)?;
    Ok(vec![Output::same("out", &far_out, &out)?, Output::same("lse", &far_lse, &lse)?])
}

/// Keys and values of three sequences; what they share between heads, too.
fn far_sequences(device: &Arc<dyn Device>, element: Element, variant: Variant) -> Result<Vec<Output>> {
    let (batch, tokens, heads, nope, rope, value) = (3, 5, 2, 16, 8, 16);
    let q = tensor(device, element, "q", &[batch, tokens, heads, nope + rope])?;
    let kv = tensor(device, element, "kv", &[batch, tokens, heads, nope + value])?;
    let k_pe = tensor(device, element, "k_pe", &[batch, tokens, rope])?;
    let attend = |kv: &Tensor, k_pe: &Tensor| -> Result<Tensor> {
        let out = output(device, element, &[batch, tokens, heads, value])?;
        let lse = output(device, Element::F32, &[batch, tokens, heads])?;
        mla_prefill(variant, &q, kv, k_pe, None, None, 0.2, &out, &lse).map(|()| out)
    };
    let near = attend(&kv, &k_pe)?;
    Ok(vec![
        Output::same("with keys and values apart", &attend(&apart(&kv)?, &k_pe)?, &near)?,
        Output::same("with positions apart", &attend(&kv, &apart(&k_pe)?)?, &near)?,
    ])
}
