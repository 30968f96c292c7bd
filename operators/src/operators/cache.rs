//! What a layer puts into the latent cache (section 2.1.2, eq. 9; 2.1.3, eq. 15): the normalised latent and the rotated key.

use dsv2_reference::Real;
use dsv2_reference::model::norm::RmsNorm;
use ndarray::{Array2, Array3, Axis, Ix1, Ix2, Ix3, s};

use super::draw::{Draw, int32, scalar};
use super::norm::EPS;
use super::rotary;
use crate::call::{Call, Outputs};
use crate::contract::{Contract, Workload};
use crate::error::Result;
use crate::tensor::{ElementType, Tensor, Tensors};

/// Writes `RMSNorm(kv_a[:, ..c])` and `RoPE(kv_a[:, c..])` of each token into its slot; a slot of -1 is written nowhere (the
/// padding of a captured graph). All other slots stay as they are.
pub fn append<T: Real>(contract: &Contract, call: &Call) -> Result<Outputs<T>> {
    let kv_a = call.real::<T, Ix2>("kv_a");
    let [width, rotated] = ["ckv_cache", "kpe_cache"].map(|cache| call.tensor(cache).shape()[2]);
    if kv_a.ncols() != width + rotated {
        let expected = format!("rows of {width} + {rotated}");
        return Err(contract.mismatch("input", "kv_a", &expected, &kv_a.ncols().to_string()));
    }
    let latent = RmsNorm::new(call.real::<T, Ix1>("weight"), EPS).forward(kv_a.slice(s![.., ..width]));
    let mut key = kv_a.slice(s![.., width..]).to_owned().insert_axis(Axis(0)).insert_axis(Axis(0));
    rotary::given(call).rotate(&mut key);
    let keys = key.index_axis_move(Axis(0), 0).index_axis_move(Axis(0), 0);
    put(contract, call, &latent, &keys)
}

/// Writes the latent and the rotated key of each token into its slot, as they are, or divided by the scale of a cache in fp8.
pub fn write<T: Real>(contract: &Contract, call: &Call) -> Result<Outputs<T>> {
    let scale: T = if call.has("kv_scale") { call.scalar("kv_scale") } else { T::one() };
    let [latents, keys] = ["kv_c", "k_pe"].map(|name| call.real::<T, Ix2>(name).mapv_into(|x| x / scale));
    put(contract, call, &latents, &keys)
}

/// Writes rows into the slots of their tokens.
fn put<T: Real>(contract: &Contract, call: &Call, latents: &Array2<T>, keys: &Array2<T>) -> Result<Outputs<T>> {
    let (mut ckv_cache, mut kpe_cache) = (call.real::<T, Ix3>("ckv_cache"), call.real::<T, Ix3>("kpe_cache"));
    let (pages, page_size, _) = ckv_cache.dim();
    let mut written = std::collections::BTreeSet::new();
    for (token, &slot) in call.index::<Ix1>("slot_mapping").iter().enumerate().filter(|(_, slot)| **slot != -1) {
        let place = usize::try_from(slot).ok().filter(|&slot| slot < pages * page_size && written.insert(slot));
        let place = place.ok_or_else(|| {
            let expected = format!("-1, or slots 0 to {}, each once", (pages * page_size).saturating_sub(1));
            contract.mismatch("input", "slot_mapping", &expected, &slot.to_string())
        })?;
        let at = s![place / page_size, place % page_size, ..];
        ckv_cache.slice_mut(at).assign(&latents.row(token));
        kpe_cache.slice_mut(at).assign(&keys.row(token));
    }
    Ok(vec![("ckv_cache", ckv_cache.into()), ("kpe_cache", kpe_cache.into())])
}

/// Tokens for slots anywhere in a cache of other numbers. `padding`: every third token has no slot. `NaN in unused cache`:
/// the other slots hold NaN.
pub fn inputs(workload: &Workload, draw: &Draw) -> Tensors {
    let [tokens, ckv, kpe] = ["num_tokens", "head_dim_ckv", "head_dim_kpe"].map(|axis| workload.axis(axis));
    let mut tensors = rotary::tables(tokens, kpe, draw);
    tensors.extend(slots(workload, draw));
    tensors.extend([
        ("kv_a".to_owned(), Tensor::real(workload.dtype, draw.normal("kv_a", &[tokens, ckv + kpe], 1.0))),
        ("weight".to_owned(), Tensor::real(workload.dtype, draw.about("weight", &[ckv], 1.0, 0.3))),
    ]);
    tensors
}

/// The same tokens, normalised and rotated already.
pub fn write_inputs(workload: &Workload, draw: &Draw) -> Tensors {
    let [tokens, ckv, kpe] = ["num_tokens", "head_dim_ckv", "head_dim_kpe"].map(|axis| workload.axis(axis));
    let row =
        |name: &str, width| (name.to_owned(), Tensor::real(workload.dtype, draw.normal(name, &[tokens, width], 1.0)));
    let mut tensors = slots(workload, draw);
    tensors.extend([row("kv_c", ckv), row("k_pe", kpe)]);
    tensors
}

/// A slot for each token (`last slots`: the last ones), and a cache; with a `kv_scale`, in fp8.
fn slots(workload: &Workload, draw: &Draw) -> Tensors {
    let [tokens, ckv, kpe, pages, size] =
        ["num_tokens", "head_dim_ckv", "head_dim_kpe", "num_pages", "page_size"].map(|axis| workload.axis(axis));
    let kv_scale = workload.numbers.get("kv_scale").copied();
    let unused = |name: &str, width: usize| {
        let filled = Array3::from_elem((pages, size, width), f64::NAN).into_dyn();
        let values =
            if workload.has("NaN in unused cache") { filled } else { draw.normal(name, &[pages, size, width], 1.0) };
        let held = match kv_scale {
            Some(scale) => Tensor::real(ElementType::Float8, values.mapv_into(|x| x / scale)),
            None => Tensor::real(workload.dtype, values),
        };
        (name.to_owned(), held)
    };
    let order = match workload.has("last slots") {
        true => (0..pages * size).rev().collect(),
        false => draw.permutation("slots", pages * size),
    };
    let slot = |token: usize| if workload.has("padding") && token % 3 == 2 { -1 } else { order[token] as i64 };
    let mut tensors = Tensors::from_iter([
        ("slot_mapping".to_owned(), int32(tokens, (0..tokens).map(slot).collect())),
        unused("ckv_cache", ckv),
        unused("kpe_cache", kpe),
    ]);
    tensors.extend(kv_scale.map(|scale| ("kv_scale".to_owned(), scalar(scale))));
    tensors
}
