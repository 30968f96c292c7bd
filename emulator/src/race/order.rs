//! What an opcode says of memory order (PTX manual, "Memory Consistency Model").

/// Which threads an operation is meant for (PTX manual, "Scope").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// Nobody: a weak operation, which must not meet another.
    Nobody,
    /// The threads of the block: `.cta`.
    Block,
    /// All threads: `.gpu`, `.sys`, or no scope.
    Device,
}

/// The order that an instruction asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// For whom it is *strong*: two strong operations may meet.
    pub(super) reach: Reach,
    pub(super) acquires: bool,
    pub(super) releases: bool,
}

impl Order {
    /// The order of a load, a store, an atomic operation or a fence.
    pub(super) fn of(opcode: &str) -> Self {
        let has = |wanted: &[&str]| opcode.split('.').any(|word| wanted.contains(&word));
        let fence = opcode.starts_with("fence") || opcode.starts_with("membar");
        let atomic = opcode.starts_with("atom") || opcode.starts_with("red.");
        // A volatile access counts as relaxed with the widest scope.
        if opcode.starts_with("cp.async.mbarrier") {
            return Self { reach: Reach::Block, acquires: false, releases: false };
        }
        if opcode.starts_with("mbarrier") {
            // Arriving tells, and waiting hears, unless they say otherwise.
            let relaxed = has(&["relaxed"]);
            let (acquires, releases) = (has(&["test_wait", "try_wait"]), has(&["arrive", "arrive_drop"]));
            return Self { reach: Reach::Block, acquires: acquires && !relaxed, releases: releases && !relaxed };
        }
        let strong = fence || atomic || has(&["relaxed", "acquire", "release", "volatile"]);
        // A block outside of any cluster is a cluster of its own.
        let reach = match (strong, has(&["cta", "cluster"])) {
            (false, _) => Reach::Nobody,
            (true, true) => Reach::Block,
            (true, false) => Reach::Device,
        };
        if fence {
            return Self { reach, acquires: !has(&["release"]), releases: !has(&["acquire"]) };
        }
        Self { reach, acquires: has(&["acquire", "acq_rel"]), releases: has(&["release", "acq_rel"]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes() {
        let order = |opcode: &str| {
            let Order { reach, acquires, releases } = Order::of(opcode);
            (reach, acquires, releases)
        };
        assert_eq!(order("ld.shared::cta.f32"), (Reach::Nobody, false, false));
        assert_eq!(order("redux.sync.add.u32"), (Reach::Nobody, false, false));
        assert_eq!(order("ld.volatile.global.u32"), (Reach::Device, false, false));
        assert_eq!(order("ld.acquire.cta.u32"), (Reach::Block, true, false));
        assert_eq!(order("atom.global.add.u32"), (Reach::Device, false, false));
        assert_eq!(order("atom.acq_rel.gpu.global.add.u32"), (Reach::Device, true, true));
        assert_eq!(order("red.shared.add.u32"), (Reach::Device, false, false));
        assert_eq!(order("mbarrier.arrive.shared.b64"), (Reach::Block, false, true));
        assert_eq!(order("mbarrier.test_wait.shared.b64"), (Reach::Block, true, false));
        assert_eq!(order("fence.acq_rel.cluster"), (Reach::Block, true, true));
        assert_eq!(order("membar.gl"), (Reach::Device, true, true));
        assert_eq!(order("membar.cta"), (Reach::Block, true, true));
        assert_eq!(order("fence.acquire.gpu"), (Reach::Device, true, false));
    }
}
