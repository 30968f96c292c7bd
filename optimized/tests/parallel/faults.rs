//! Calls that do not fit: each is found, with the rank, the call and what was expected. No rank waits in vain.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dsv2_optimized::collective::Group;
use dsv2_optimized::collective::emulated::{Rank, Ranks};
use dsv2_optimized::{Device, Element, Emulated, Error, Library, Result, Tensor};

use crate::bench::ranks;

fn ones(rank: &Rank, length: usize) -> Result<Tensor> {
    Tensor::from_f32(rank.device(), Element::F32, &[length], &vec![1.0; length])
}

/// The fault of two ranks, of which the second does something else. It is the same for every seed.
fn fault(of_both: impl Fn(&Group, &Tensor, usize) -> Result<()> + Sync) -> String {
    let run = |seed| {
        let done = ranks(2).shuffled(seed).run(|rank| {
            let tensor = ones(rank, 4)?;
            of_both(&rank.group(&[0, 1])?, &tensor, rank.index())?;
            tensor.to_f32()
        });
        done.unwrap_err().to_string()
    };
    let first = run(0);
    (1..6).for_each(|seed| assert_eq!(run(seed), first, "seed {seed}"));
    first
}

#[test]
fn a_lost_call_is_found_when_its_rank_has_ended() {
    let found = fault(|group, tensor, rank| if rank == 0 { group.all_reduce("sum", tensor) } else { Ok(()) });
    let expected =
        "rank 0: all-reduce over ranks [0, 1] for `sum`: expected rank 1 to come to it, found that rank 1 has ended";
    assert_eq!(found, expected);
}

#[test]
fn a_repeated_call_is_found_when_the_other_rank_has_ended() {
    let found = fault(|group, tensor, rank| (0..2 - rank).try_for_each(|_| group.all_reduce("sum", tensor)));
    assert!(found.ends_with("expected rank 1 to come to it, found that rank 1 has ended"), "{found}");
}

#[test]
fn calls_in_another_order_are_found() {
    let found = fault(|group, tensor, rank| {
        let purposes = if rank == 0 { ["first", "second"] } else { ["second", "first"] };
        purposes.into_iter().try_for_each(|purpose| group.all_reduce(purpose, tensor))
    });
    let expected = "rank 1: all-reduce over ranks [0, 1] for `second`: expected as on rank 0: all-reduce over ranks [0, 1] for \
                    `first`, found another call";
    assert_eq!(found, expected);
}

#[test]
fn another_operation_and_another_root_are_found() {
    let found = fault(|group, tensor, rank| match rank {
        0 => group.all_reduce("it", tensor),
        _ => group.broadcast("it", tensor, 0),
    });
    assert!(found.starts_with("rank 1: broadcast from member 0") && found.contains("all-reduce"), "{found}");
    let found = fault(|group, tensor, rank| group.broadcast("it", tensor, rank));
    assert!(found.starts_with("rank 1: broadcast from member 1") && found.contains("from member 0"), "{found}");
}

#[test]
fn another_count_and_another_type_are_found() {
    let found = fault(|group, tensor, rank| group.all_reduce("it", &tensor.narrow(0, 0..4 - rank)?));
    assert!(
        found.starts_with("rank 0: all-reduce") && found.ends_with("expected 4 elements from rank 1, found 3"),
        "{found}"
    );
    let found = fault(|group, tensor, rank| match rank {
        0 => group.all_reduce("it", tensor),
        _ => group.all_reduce("it", &Tensor::from_i32(tensor.device(), &[4], &[0; 4])?),
    });
    assert!(found.ends_with("expected f32, as on rank 0, found i32"), "{found}");
}

#[test]
fn ranks_that_wait_for_each_other_in_different_groups_are_found_at_once() {
    let done = ranks(3).run(|rank| {
        let tensor = ones(rank, 1)?;
        let groups = [[0, 1], [1, 2], [2, 0]];
        rank.group(&groups[rank.index()])?.all_reduce("it", &tensor)?;
        tensor.to_f32()
    });
    let expected = "rank 0: all-reduce over ranks [0, 1] for `it`: expected rank 1 to come to it, found rank 1 in all-reduce \
                    over ranks [1, 2] for `it`";
    assert_eq!(done.unwrap_err().to_string(), expected);
}

#[test]
fn a_rank_that_fails_or_panics_takes_the_others_with_it() {
    let done = |dies: fn() -> Result<()>| {
        let done = ranks(2).run(|rank| {
            let tensor = ones(rank, 1)?;
            match rank.index() {
                0 => rank.group(&[0, 1])?.all_reduce("it", &tensor)?,
                _ => dies()?,
            }
            tensor.to_f32()
        });
        done.unwrap_err().to_string()
    };
    let found = done(|| Err(Error::NoCuda("none today".into())));
    assert_eq!(found, "rank 1: the program: expected success, found no CUDA device: none today");
    assert_eq!(done(|| panic!("on purpose")), "rank 1: the program: expected its end, found a panic");
}

#[test]
fn a_rank_that_does_not_come_in_time_is_found() {
    let (wake, asleep) = std::sync::mpsc::channel::<()>();
    let (wake, asleep) = (Mutex::new(Some(wake)), Mutex::new(asleep));
    let done = ranks(2).within(Duration::from_millis(50)).run(|rank| {
        let tensor = ones(rank, 1)?;
        if rank.index() == 1 {
            // Until the other has given up.
            let _ = asleep.lock().unwrap().recv();
        }
        rank.group(&[0, 1])?.all_reduce("it", &tensor)?;
        let sum = tensor.to_f32();
        if rank.index() == 0 {
            drop(wake.lock().unwrap().take());
        }
        sum
    });
    let expected =
        "rank 0: all-reduce over ranks [0, 1] for `it`: expected rank 1 to come to it within 50ms, found nothing of it";
    assert_eq!(done.unwrap_err().to_string(), expected);
}

#[test]
fn a_kernel_that_fails_names_its_rank() {
    let done = ranks(2).run(|rank| {
        let tensor = Tensor::empty(rank.device(), Element::F32, &[2])?;
        if rank.index() == 0 {
            tensor.write_f32(&[1.0; 2])?;
        }
        rank.group(&[0, 1])?.all_reduce("it", &tensor)?;
        tensor.to_f32()
    });
    let found = done.unwrap_err().to_string();
    assert!(found.starts_with("rank 1: all-reduce over ranks [0, 1] for `it`: expected numbers to send"), "{found}");
}

#[test]
fn a_rank_that_is_busy_in_another_group_is_found_when_the_time_is_over() {
    let (wake, asleep) = std::sync::mpsc::channel::<()>();
    let (wake, asleep) = (Mutex::new(Some(wake)), Mutex::new(asleep));
    let done = ranks(3).within(Duration::from_millis(50)).run(|rank| {
        let tensor = ones(rank, 1)?;
        match rank.index() {
            0 => rank.group(&[0, 1])?.all_reduce("it", &tensor)?,
            1 => rank.group(&[1, 2])?.all_reduce("it", &tensor)?,
            _ => drop(asleep.lock().unwrap().recv()),
        }
        let sum = tensor.to_f32();
        drop(wake.lock().unwrap().take());
        sum
    });
    let found = done.unwrap_err().to_string();
    assert!(found.contains("to come to it within 50ms"), "{found}");
}

#[test]
fn a_tensor_of_another_device_is_refused() {
    let other: Arc<dyn Device> = Emulated::new(Library::embedded());
    let done = ranks(1).run(|rank| {
        let tensor = Tensor::from_f32(&other, Element::F32, &[1], &[1.0])?;
        rank.group(&[0])?.all_reduce("it", &tensor)
    });
    let expected = "rank 0: the program: expected success, found collective: tensor: expected a tensor on the emulator, rank 0 \
                    of 1, found emulator";
    assert_eq!(done.unwrap_err().to_string(), expected);
}

#[test]
fn what_ranks_took_is_given_back_whether_or_not_they_agreed() {
    let device = Emulated::new(Library::embedded());
    let free = || device.memory().unwrap().0;
    let before = free();
    for members in [&[0][..], &[]] {
        let done = Ranks::new(vec![device.clone()]).run(|rank| {
            let tensor = ones(rank, 1000)?;
            rank.group(members)?.all_reduce("it", &tensor)
        });
        assert_eq!(done.is_ok(), members.len() == 1);
        assert_eq!(free(), before);
    }
}

#[test]
fn a_group_that_is_none_is_refused() {
    for ranks_of_group in [&[0, 2][..], &[0, 0], &[]] {
        let done = ranks(2).run(|rank| rank.group(ranks_of_group).map(drop));
        assert!(done.unwrap_err().to_string().contains("group: ranks: expected different ranks below 2"));
    }
}
