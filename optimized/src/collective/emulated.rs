//! Ranks on emulated devices of one process: a thread and a stream for each.
//!
//! What a rank asks for waits in its stream. Whoever waits for a result does the work of all streams, one step after another,
//! of a stream that a seed chooses among those that can go on: a program whose result depends on the order shows it.
//! No rank waits in vain. A collective of which a rank cannot come any more (it has ended, or waits for another one) is found
//! at once; one whose rank is busy elsewhere, when the time is over. Then every rank is told the same [`Fault`].

use std::sync::Arc;
use std::time::Duration;

use super::stream::Streamed;
use super::world::World;
use super::{Call, Group};
use crate::{Device, Emulated, Error, Result};

/// How long a rank waits for the others where nobody says.
const LIMIT: Duration = Duration::from_secs(60);

/// Why the ranks cannot go on: which rank, in which call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rank {rank}: {call}: expected {expected}, found {found}")]
pub struct Fault {
    /// The rank.
    pub rank: usize,
    /// What it was doing.
    pub call: String,
    /// What should have been.
    pub expected: String,
    /// What was.
    pub found: String,
}

impl Fault {
    pub(super) fn new(rank: usize, call: impl ToString, expected: impl ToString, found: impl ToString) -> Self {
        Fault { rank, call: call.to_string(), expected: expected.to_string(), found: found.to_string() }
    }
}

/// What is done with a rank's call in place of it: how lost, repeated and wrong calls are tried.
pub type Interference = Box<dyn Fn(usize, Call) -> Vec<Call> + Send + Sync>;

/// Ranks, each with a device.
pub struct Ranks {
    world: World,
}

impl Ranks {
    /// A rank for each device.
    pub fn new(devices: Vec<Arc<Emulated>>) -> Self {
        Ranks { world: World::new(devices, LIMIT) }
    }

    /// With another order of what is done.
    #[must_use]
    pub fn shuffled(self, seed: u64) -> Self {
        self.world.shuffle(seed);
        self
    }

    /// With another time in which every rank must come to a collective.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.world.limit = limit;
        self
    }

    /// With other calls in place of those that are made.
    #[must_use]
    pub fn interfered(mut self, interference: Interference) -> Self {
        self.world.interference = Some(interference);
        self
    }

    /// Runs a program on every rank, and gives back what each returned.
    ///
    /// # Errors
    /// The first fault: the ranks disagree, one failed or panicked, or one waited in vain.
    pub fn run<T: Send>(self, program: impl Fn(&Rank) -> Result<T> + Sync) -> Result<Vec<T>> {
        let world = Arc::new(self.world);
        let ended = std::thread::scope(|scope| {
            let of_rank = |rank: usize| {
                let (world, program) = (world.clone(), &program);
                scope.spawn(move || {
                    let ending = Ending { world: &world, rank };
                    let device: Arc<dyn Device> = Arc::new(Streamed { world: world.clone(), rank });
                    let done = program(&Rank { world: world.clone(), rank, device: device.clone() });
                    // What was asked for is done, whether or not somebody looked at it.
                    let done = done.and_then(|value| device.synchronize().map(|()| value));
                    if let Err(error) = &done {
                        world.fail(Fault::new(rank, "the program", "success", error));
                    }
                    drop(ending);
                    done
                })
            };
            let threads: Vec<_> = (0..world.ranks()).map(of_rank).collect();
            threads.into_iter().map(|thread| thread.join().ok()).collect::<Vec<_>>()
        });
        world.clear();
        world.check()?;
        ended.into_iter().flatten().collect()
    }
}

/// A rank, as its program sees it.
#[derive(Debug)]
pub struct Rank {
    world: Arc<World>,
    rank: usize,
    device: Arc<dyn Device>,
}

impl Rank {
    /// Its number.
    pub fn index(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.world.ranks()
    }

    /// Its device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Some ranks, this one among them, in an order that all of them know.
    ///
    /// # Errors
    /// If one is none, is there twice, or this one is not there.
    pub fn group(&self, ranks: &[usize]) -> Result<Group> {
        let mut sorted = ranks.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let place = ranks.iter().position(|rank| *rank == self.rank);
        match place.filter(|_| sorted.len() == ranks.len() && sorted.iter().all(|rank| *rank < self.count())) {
            Some(place) => {
                let (world, device) = (self.world.clone(), self.device.clone());
                Ok(Group { world, rank: self.rank, ranks: ranks.into(), place, device })
            }
            None => {
                let expected = format!("different ranks below {}, {} among them", self.count(), self.rank);
                Err(Error::operand("group", "ranks", expected, format!("{ranks:?}")))
            }
        }
    }
}

/// Tells the others that a rank has ended, however it did.
struct Ending<'a> {
    world: &'a World,
    rank: usize,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.world.fail(Fault::new(self.rank, "the program", "its end", "a panic"));
        }
        self.world.end(self.rank);
    }
}
