//! Which launches do the same work in different places.

use std::collections::BTreeMap;

use dsv2_optimized::{Arg, Grid, Kernel};
use ptx_emulator::profile::Profile;

use crate::Work;

/// A kernel, its grid and its arguments without addresses: sizes and strides. Two launches with the same key do the same
/// work in different places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The kernel's entry.
    pub kernel: String,
    /// Its grid.
    pub grid: Grid,
    arguments: Vec<Vec<u8>>,
}

/// A launch, and all that is known of it.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Which.
    pub key: Key,
    /// What the emulator's profile says.
    pub profile: Profile,
    /// What each block did.
    pub work: Work,
}

/// A launch that a graph holds.
pub(crate) type Captured = (Kernel, Grid, Vec<Arg>);

/// Memory that is taken: where, and how many bytes.
#[derive(Debug, Default)]
pub(crate) struct Taken(BTreeMap<u64, u64>);

impl Taken {
    pub(crate) fn add(&mut self, address: u64, bytes: u64) {
        self.0.insert(address, bytes);
    }

    pub(crate) fn remove(&mut self, address: u64) {
        self.0.remove(&address);
    }

    /// The key of a launch whose operands are in this memory.
    pub(crate) fn key(&self, (kernel, grid, args): &Captured) -> Key {
        let arguments = args.iter().map(|arg| self.without_addresses(arg.as_bytes())).collect();
        Key { kernel: kernel.entry.clone(), grid: *grid, arguments }
    }

    /// An argument, in which every word of eight bytes is zero that points to memory that is taken.
    fn without_addresses(&self, argument: &[u8]) -> Vec<u8> {
        let mut argument = argument.to_vec();
        for word in argument.as_chunks_mut::<8>().0 {
            let address = u64::from_le_bytes(*word);
            let taken = self.0.range(..=address).next_back();
            if taken.is_some_and(|(start, bytes)| address - start < (*bytes).max(1)) {
                *word = [0; 8];
            }
        }
        argument
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(args: Vec<Arg>) -> Captured {
        (Kernel::new("gemm", "of_somebody"), Grid::linear(1, 32), args)
    }

    #[test]
    fn addresses_are_no_part_of_a_key_and_sizes_are() {
        let mut taken = Taken::default();
        taken.add(1 << 36, 1000);
        taken.add(1 << 37, 1000);
        let key = |address: u64, size: i32| taken.key(&launch(vec![address.into(), size.into()]));
        assert_eq!(key(1 << 36, 7), key((1 << 37) + 999, 7));
        assert_ne!(key(1 << 36, 7), key(1 << 36, 8));
        assert_ne!(key(1 << 36, 7), key((1 << 36) + 1000, 7), "beyond the end there is no memory");
    }

    #[test]
    fn an_address_within_a_struct_is_found_as_well() {
        let mut taken = Taken::default();
        taken.add(1 << 36, 8);
        let key = |words: [u64; 2]| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            taken.key(&launch(vec![Arg::bytes(&bytes)]))
        };
        assert_eq!(key([5, 1 << 36]), key([5, 0]));
        assert_ne!(key([5, 1 << 36]), key([6, 1 << 36]));
    }
}
