//! What graphs promise, on any device.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use dsv2_optimized::device::Counts;
use dsv2_optimized::operators::argmax::argmax;
use dsv2_optimized::{Device, Element, Error, Grid, Kernel, Tensor, Variant};

/// 4 logits, and the token of the largest of them.
struct Argmax {
    logits: Tensor,
    token: Tensor,
}

impl Argmax {
    fn new(device: &Arc<dyn Device>) -> Self {
        Argmax {
            logits: Tensor::empty(device, Element::F32, &[1, 4]).unwrap(),
            token: Tensor::empty(device, Element::I32, &[1]).unwrap(),
        }
    }

    fn write(&self, logits: [f32; 4]) {
        self.logits.write_f32(&logits).unwrap();
    }

    fn launch(&self) -> Result<(), Error> {
        argmax(Variant::Naive, &self.logits, &self.token)
    }

    fn token(&self) -> i32 {
        self.token.to_i32().unwrap()[0]
    }
}

/// Launches, copies and fills; once, and again with other numbers in the same places.
pub fn replays(device: &Arc<dyn Device>) {
    let greedy = Argmax::new(device);
    let copy = device.allocate(4).unwrap();
    device.fill(greedy.token.address(), 9, 4).unwrap();
    let mut work = || {
        greedy.launch()?;
        device.copy(greedy.token.address(), copy, 4)?;
        device.fill(greedy.token.address(), 5, 4)
    };
    let graph = device.clone().capture(&mut work).unwrap();
    assert_eq!(graph.launches(), 1);
    assert_eq!(greedy.token(), 0x0909_0909, "nothing is done before it is launched");
    for (logits, expected) in [([0.0, 3.0, 1.0, 2.0], 1), ([4.0, 3.0, 1.0, 5.0], 3)] {
        greedy.write(logits);
        graph.launch().unwrap();
        let mut token = [0; 4];
        device.read(copy, &mut token).unwrap();
        assert_eq!((i32::from_le_bytes(token), greedy.token()), (expected, 0x0505_0505));
    }
    // Outside a graph all is as ever, and the graph outlives other uses of the device.
    greedy.write([7.0, 3.0, 1.0, 5.0]);
    greedy.launch().unwrap();
    assert_eq!(greedy.token(), 0);
    drop(graph);
    assert_eq!(greedy.token(), 0);
    device.free(copy);
}

type Call<'a> = &'a dyn Fn() -> Result<(), Error>;

/// Each call that a graph cannot hold.
pub fn refuses(device: &Arc<dyn Device>) {
    let place = device.allocate(4).unwrap();
    let empty = device.clone().capture(&mut || Ok(())).unwrap();
    let second = device.clone();
    let calls: [(&str, Call); 7] = [
        ("an allocation", &|| device.allocate(4).map(|_| ())),
        ("a copy from the host", &|| device.write(place, &[0; 4])),
        ("a copy to the host", &|| device.read(place, &mut [0; 4])),
        ("waiting", &|| device.synchronize()),
        ("a capture", &|| device.clone().capture(&mut || Ok(())).map(|_| ())),
        ("launching a graph", &|| empty.launch()),
        // From another thread, what a graph could hold.
        ("filling memory", &|| {
            std::thread::scope(|scope| scope.spawn(|| second.fill(place, 1, 4)).join().expect("no panic"))
        }),
    ];
    for (what, call) in calls {
        let expected = format!("{what}: not possible while a graph is captured");
        let error = device.clone().capture(&mut || call()).unwrap_err().to_string();
        assert_eq!(error, expected);
        // Who goes on in spite of it has a graph without it.
        let graph = device.clone().capture(&mut || call().or_else(|_| device.fill(place, 3, 4))).unwrap();
        graph.launch().unwrap();
        let mut bytes = [0; 4];
        device.read(place, &mut bytes).unwrap();
        assert_eq!(bytes, [3; 4], "{what}");
    }
    let freed = device.clone().capture(&mut || {
        device.free(place);
        Ok(())
    });
    assert_eq!(freed.unwrap_err().to_string(), "giving memory back: not possible while a graph is captured");
    let unknown = || device.launch(&Kernel::new("argmax", "none"), Grid::linear(1, 1), &[]);
    let error = device.clone().capture(&mut || unknown()).unwrap_err();
    assert!(matches!(error, Error::NoKernel { .. }), "{error}");
    let panicked =
        catch_unwind(AssertUnwindSafe(|| device.clone().capture(&mut || resume_unwind(Box::new("as a test does")))));
    assert!(panicked.is_err());
    let place = device.allocate(4).expect("no capture is under way any more");
    device.free(place);
}

/// What one step of a program that keeps its memory asks for.
pub fn counts(device: &Arc<dyn Device>) {
    let greedy = Argmax::new(device);
    assert_eq!(device.counts().allocations, 2);
    let graph = device.clone().capture(&mut || greedy.launch().and_then(|()| greedy.launch())).unwrap();
    assert_eq!(device.counts(), Counts::default(), "what was written down was not done");
    greedy.write([0.0, 3.0, 1.0, 2.0]);
    graph.launch().unwrap();
    greedy.token();
    let step = Counts { uploads: 1, graphs: 1, launches: 2, downloads: 1, synchronizations: 1, ..Counts::default() };
    assert_eq!(device.counts(), step);
    device.fill(greedy.token.address(), 1, 4).unwrap();
    device.copy(greedy.token.address(), greedy.logits.address(), 4).unwrap();
    greedy.launch().unwrap();
    device.synchronize().unwrap();
    assert_eq!(device.counts(), Counts { copies: 2, launches: 1, synchronizations: 1, ..Counts::default() });
    assert_eq!(device.counts(), Counts::default());
}

/// Sizes that no GPU takes, in each axis.
pub fn refuses_grids(device: &Arc<dyn Device>) {
    let kernel = Kernel::new("argmax", "argmax_naive_f32");
    let most = "expected 1 to 2147483647, 65535 and 65535 blocks of 1 to 1024, 1024 and 64 threads (1024 in all)";
    for (blocks, threads) in [
        ([1 << 31, 1, 1], [1, 1, 1]),
        ([1, 65536, 1], [1, 1, 1]),
        ([1, 1, 65536], [1, 1, 1]),
        ([1, 0, 1], [1, 1, 1]),
        ([1, 1, 1], [1025, 1, 1]),
        ([1, 1, 1], [1, 1, 65]),
        ([1, 1, 1], [64, 32, 1]),
        ([1, 1, 1], [0, 1, 1]),
    ] {
        let error = device.launch(&kernel, Grid { blocks, threads, shared: 0 }, &[]).unwrap_err().to_string();
        assert_eq!(error, format!("argmax_naive_f32: {most}, found {blocks:?} blocks of {threads:?}"));
    }
}
