//! What ranks say to each other: all-reduce, all-gather, reduce-scatter, all-to-all with counts, broadcast, over tensors on
//! their devices.
//!
//! A call is put on the rank's stream and returns at once, as NCCL's do: it is done after the work that was asked for before
//! it, and once every rank of the group has come to it. The ranks of a group make the same calls in the same order; what they
//! must agree on is told at [`Call`].
//!
//! There is one implementation so far: [`emulated`], devices of one process. A sum is made in the order of the ranks, in
//! fp32, and rounded once: its bits depend on nothing else.

pub mod emulated;
mod stream;
mod transfer;
mod world;

use std::sync::Arc;

use crate::{Device, Element, Error, Result, Tensor};
use world::World;

/// What is done with the numbers of all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Each gets the sum of all.
    AllReduce,
    /// Each gets what all have, in the order of the ranks.
    AllGather,
    /// Each gets its part of the sum.
    ReduceScatter,
    /// Each gets from each other what that has for it.
    AllToAll,
    /// Each gets what one has: that with this number in the group.
    Broadcast {
        /// Which one.
        root: usize,
    },
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Operation::AllReduce => write!(f, "all-reduce"),
            Operation::AllGather => write!(f, "all-gather"),
            Operation::ReduceScatter => write!(f, "reduce-scatter"),
            Operation::AllToAll => write!(f, "all-to-all"),
            Operation::Broadcast { root } => write!(f, "broadcast from member {root}"),
        }
    }
}

/// A rank's call. All ranks of the group must agree on the operation, the group, the type of the numbers and what it is for;
/// and what one sends another must be as much as that expects.
#[derive(Clone, Debug)]
pub struct Call {
    /// What is done.
    pub operation: Operation,
    /// What it is for, for example `layers.3.mlp: sum`.
    pub purpose: String,
    /// The group, in its order.
    pub ranks: Arc<[usize]>,
    /// What this rank gives. It may be what it gets.
    pub send: Tensor,
    /// Elements of it for each rank of the group, one after another; or all of them, where all ranks get the same.
    pub send_counts: Vec<usize>,
    /// Where it puts what it gets.
    pub receive: Tensor,
    /// Elements from each rank, one after another; or all of them, where there is one result.
    pub receive_counts: Vec<usize>,
}

impl Call {
    /// The counts are those of neighbours in tensors of one type, and as many as the operation has parts.
    fn check(&self) -> Result<()> {
        let all = self.ranks.len();
        let (sent, received) = match self.operation {
            Operation::AllReduce | Operation::Broadcast { .. } => (1, 1),
            Operation::AllGather => (1, all),
            Operation::ReduceScatter => (all, 1),
            Operation::AllToAll => (all, all),
        };
        let sides =
            [("send", &self.send, &self.send_counts, sent), ("receive", &self.receive, &self.receive_counts, received)];
        for (name, tensor, counts, parts) in sides {
            if counts.len() != parts || counts.iter().sum::<usize>() != tensor.len() || !tensor.is_contiguous() {
                let expected = format!("{parts} counts that add up to the neighbouring elements of the tensor");
                let found = format!("{counts:?} of {:?}, {}", tensor.shape(), self.operation);
                return Err(Error::operand("collective", name, expected, found));
            }
        }
        if self.send.element() != self.receive.element() {
            return Err(Error::operand("collective", "receive", self.send.element(), self.receive.element()));
        }
        Ok(())
    }
}

/// Some of the ranks, as one of them sees them.
#[derive(Clone, Debug)]
pub struct Group {
    world: Arc<World>,
    rank: usize,
    ranks: Arc<[usize]>,
    place: usize,
    device: Arc<dyn Device>,
}

impl Group {
    /// The ranks, in order.
    pub fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    /// The place of this rank among them.
    pub fn place(&self) -> usize {
        self.place
    }

    /// The device of this rank.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// `tensor` becomes the sum of those of all ranks.
    ///
    /// # Errors
    /// If it is no tensor of this rank with neighbouring elements. (Whether the ranks agree shows when a result is waited for.)
    pub fn all_reduce(&self, purpose: &str, tensor: &Tensor) -> Result<()> {
        let count = vec![tensor.len()];
        self.call(Operation::AllReduce, purpose, (tensor, count.clone()), (tensor, count))
    }

    /// `receive` becomes the `send` of all ranks, of which each has so many elements.
    ///
    /// # Errors
    /// As [`Group::all_reduce`]; also if counts and sizes do not agree.
    pub fn all_gather(&self, purpose: &str, send: &Tensor, receive: &Tensor, counts: &[usize]) -> Result<()> {
        self.call(Operation::AllGather, purpose, (send, vec![send.len()]), (receive, counts.to_vec()))
    }

    /// `receive` becomes this rank's part of the sum of all `send`: so many elements for each rank.
    ///
    /// # Errors
    /// As [`Group::all_gather`].
    pub fn reduce_scatter(&self, purpose: &str, send: &Tensor, receive: &Tensor, counts: &[usize]) -> Result<()> {
        self.call(Operation::ReduceScatter, purpose, (send, counts.to_vec()), (receive, vec![receive.len()]))
    }

    /// Each rank's part of `send` goes to it; what comes is put one after another into `receive`.
    ///
    /// # Errors
    /// As [`Group::all_gather`].
    pub fn all_to_all(&self, purpose: &str, send: (&Tensor, Vec<usize>), receive: (&Tensor, Vec<usize>)) -> Result<()> {
        self.call(Operation::AllToAll, purpose, send, receive)
    }

    /// `tensor` becomes that of the rank at the place `root` of the group.
    ///
    /// # Errors
    /// As [`Group::all_reduce`]; also if there is no such place.
    pub fn broadcast(&self, purpose: &str, tensor: &Tensor, root: usize) -> Result<()> {
        if root >= self.ranks.len() {
            return Err(Error::operand("broadcast", "root", format!("a place below {}", self.ranks.len()), root));
        }
        let count = vec![tensor.len()];
        self.call(Operation::Broadcast { root }, purpose, (tensor, count.clone()), (tensor, count))
    }

    fn call(
        &self,
        operation: Operation,
        purpose: &str,
        (send, send_counts): (&Tensor, Vec<usize>),
        (receive, receive_counts): (&Tensor, Vec<usize>),
    ) -> Result<()> {
        for tensor in [send, receive] {
            if !Arc::ptr_eq(tensor.device(), &self.device) {
                let expected = format!("a tensor on the {}", self.device.name());
                return Err(Error::operand("collective", "tensor", expected, tensor.device().name()));
            }
        }
        let (ranks, purpose) = (self.ranks.clone(), purpose.to_owned());
        let (send, receive) = (send.clone(), receive.clone());
        self.world.post(self.rank, Call { operation, purpose, ranks, send, send_counts, receive, receive_counts })
    }
}

/// A call as it waits in a stream: addresses in place of tensors, which are given back in the stream's order.
#[derive(Clone, Debug)]
struct Posted {
    operation: Operation,
    purpose: String,
    ranks: Arc<[usize]>,
    element: Element,
    send: (u64, Vec<usize>),
    receive: (u64, Vec<usize>),
}

impl From<&Call> for Posted {
    fn from(call: &Call) -> Self {
        Posted {
            operation: call.operation,
            purpose: call.purpose.clone(),
            ranks: call.ranks.clone(),
            element: call.send.element(),
            send: (call.send.address(), call.send_counts.clone()),
            receive: (call.receive.address(), call.receive_counts.clone()),
        }
    }
}

impl std::fmt::Display for Posted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Posted { operation, purpose, ranks, .. } = self;
        write!(f, "{operation} over ranks {ranks:?} for `{purpose}`")
    }
}
