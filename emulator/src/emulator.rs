//! The device: its memory, and launches.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use crate::exec::launch::{Launch, Report};
use crate::lower::{Kernel, function_address};
use crate::memory::store::Store;
use crate::memory::{DevicePointer, Memory};
use crate::observe::Observer;
use crate::options::{Arg, Grid, Options, Unwritten};
use crate::parse::ast::Reference;
use crate::{Error, Module, Space};

/// A device: memory that lives from launch to launch.
///
/// An allocation takes 1.25 times its size on the host: a byte for each word says which of its bytes were written.
#[derive(Debug)]
pub struct Emulator {
    memory: Memory,
    /// The addresses of the variables of each module that was launched.
    loaded: HashMap<u64, Vec<u64>>,
    interrupted: Arc<AtomicBool>,
    printed: Mutex<String>,
    /// What cooperative grids meet at, once there was one.
    workspace: Option<DevicePointer>,
}

impl Default for Emulator {
    fn default() -> Self {
        Self::new()
    }
}

/// What compute capability 8.0 allows: threads of a block, local memory of a thread, and so on.
const MAX_THREADS: u64 = 1024;
const MAX_LOCAL: u64 = 512 << 10;
const MAX_PARAMETERS: u64 = 32764;
/// Virtual registers of a thread: 256 bytes each for a warp.
const MAX_REGISTERS: usize = 1 << 16;
const MAX_BLOCKS: [u32; 3] = [i32::MAX as u32, 65535, 65535];
const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];

/// The shared memory that a block may have (CUDA C++ programming guide, "Technical Specifications per Compute
/// Capability"), by the module's target.
fn max_shared(target: &str) -> u64 {
    let number: String = target.trim_start_matches("sm_").chars().take_while(char::is_ascii_digit).collect();
    match number.parse::<u32>() {
        Ok(86 | 89 | 120 | 121) => 99 << 10,
        Ok(90..=119) => 227 << 10,
        _ => 163 << 10,
    }
}

impl Emulator {
    /// A device with 4 GiB of memory, which the host provides as it is allocated.
    pub fn new() -> Self {
        Self::with_memory(4 << 30)
    }

    /// A device with so many bytes of memory.
    pub fn with_memory(bytes: u64) -> Self {
        Self {
            memory: Memory::new(bytes),
            loaded: HashMap::new(),
            workspace: None,
            interrupted: Arc::default(),
            printed: Mutex::default(),
        }
    }

    /// Allocates memory; reading it before anything was written there is an error.
    pub fn allocate(&mut self, bytes: u64) -> Result<DevicePointer, Error> {
        self.memory.allocate(bytes, None, false)
    }

    /// The same, with a name for error messages.
    pub fn allocate_named(&mut self, name: &str, bytes: u64) -> Result<DevicePointer, Error> {
        self.memory.allocate(bytes, Some(name), false)
    }

    /// Allocates memory and fills it.
    pub fn upload(&mut self, data: &[u8]) -> Result<DevicePointer, Error> {
        let pointer = self.allocate(data.len() as u64)?;
        self.write(pointer, data)?;
        Ok(pointer)
    }

    /// Gives memory back. Its address is invalid from now on, for as long as there are addresses that were never used.
    pub fn free(&mut self, pointer: DevicePointer) -> Result<(), Error> {
        self.memory.free(pointer)
    }

    /// Copies bytes to the device.
    pub fn write(&mut self, pointer: DevicePointer, data: &[u8]) -> Result<(), Error> {
        self.memory.write(pointer, data)
    }

    /// Copies bytes from the device: everything from here to the end of the allocation.
    pub fn read(&self, pointer: DevicePointer) -> Result<Vec<u8>, Error> {
        self.memory.read(pointer, self.memory.rest(pointer)?)
    }

    /// Copies so many bytes from the device.
    pub fn read_bytes(&self, pointer: DevicePointer, bytes: u64) -> Result<Vec<u8>, Error> {
        self.memory.read(pointer, bytes)
    }

    /// Copies those of the next `out.len()` bytes that were ever written over the bytes of `out`, leaves the others as
    /// they are, and says how many were written.
    pub fn read_written(&self, pointer: DevicePointer, out: &mut [u8]) -> Result<u64, Error> {
        self.memory.read_written(pointer, out)
    }

    /// A switch that ends launches: while it is set, a launch soon returns [`Error::Interrupted`]. Whoever sets it takes
    /// it back.
    pub fn interrupter(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.interrupted)
    }

    /// What the last launch printed, also one that failed; once.
    pub fn printed(&mut self) -> String {
        std::mem::take(self.printed.get_mut().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many bytes of memory are taken, and how many there are.
    pub fn memory(&self) -> (u64, u64) {
        (self.memory.used, self.memory.limit)
    }

    /// The address of a `.global` variable of a module.
    pub fn variable(&mut self, module: &Module, name: &str) -> Result<Option<DevicePointer>, Error> {
        let found = module.ast.variables.iter().position(|variable| variable.name == name);
        let addresses = self.load(module)?;
        Ok(found.filter(|index| addresses[*index] != 0).map(|index| DevicePointer::from_address(addresses[index])))
    }

    /// Runs a kernel and waits for its end.
    pub fn launch(
        &mut self,
        module: &Module,
        kernel: &str,
        grid: Grid,
        args: &[Arg],
        options: Options,
    ) -> Result<Report, Error> {
        self.start(module, kernel, grid, args, options, None)
    }

    /// Runs a kernel while an observer watches; block after block, on one thread.
    pub fn launch_watched(
        &mut self,
        module: &Module,
        kernel: &str,
        grid: Grid,
        args: &[Arg],
        options: Options,
        observer: &mut impl Observer,
    ) -> Result<Report, Error> {
        self.start(module, kernel, grid, args, options, Some(observer))
    }

    fn start(
        &mut self,
        module: &Module,
        name: &str,
        grid: Grid,
        args: &[Arg],
        options: Options,
        observer: Option<&mut dyn Observer>,
    ) -> Result<Report, Error> {
        self.printed.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        let kernel = module.kernel(name)?;
        let wrong = |message: String| Error::Launch { kernel: name.to_string(), message };
        let params = parameters(&kernel, args).map_err(wrong)?;
        check_grid(&kernel, grid).map_err(wrong)?;
        let shared_bytes = kernel.dynamic_start.max(kernel.shared_bytes) + u64::from(grid.shared);
        let most = max_shared(module.target());
        if shared_bytes > most {
            let target = module.target();
            return Err(wrong(format!("{shared_bytes} bytes of shared memory; a block of {target} may have {most}")));
        }
        if kernel.local_bytes > MAX_LOCAL {
            return Err(wrong(format!("{} bytes of local memory; a thread may have {MAX_LOCAL}", kernel.local_bytes)));
        }
        let registers = kernel.narrow + kernel.wide;
        if registers > MAX_REGISTERS {
            return Err(wrong(format!("{registers} registers and constants; the emulator keeps {MAX_REGISTERS}")));
        }
        let globals = self.load(module)?.to_vec();
        let workspace = if options.cooperative { self.grid_workspace()? } else { 0 };
        let launch = Launch {
            kernel: &kernel,
            memory: &self.memory,
            params: &params,
            globals: &globals,
            grid: grid.blocks,
            block: grid.threads,
            dynamic_bytes: grid.shared,
            shared_bytes,
            checked: options.checked && options.unwritten == Unwritten::Stop,
            follow: options.checked && options.unwritten == Unwritten::Follow,
            words: None,
            limit: options.limit,
            summation: options.summation,
            interrupted: &self.interrupted,
            printed: &self.printed,
            workspace,
        };
        let blocks: u64 = grid.blocks.iter().map(|size| u64::from(*size)).product();
        if options.cooperative && blocks > launch.residents() {
            let message =
                format!("a cooperative grid of {blocks} blocks; {} can be under way at once", launch.residents());
            return Err(wrong(message));
        }
        if let Some(observer) = observer {
            return launch.run_in_order(Some(observer));
        }
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if options.threads == 0 { cores() } else { options.threads };
        let threads = threads.min(usize::try_from(blocks).unwrap_or(usize::MAX));
        if threads <= 1 || kernel.needs_order {
            return launch.run_in_order(None);
        }
        launch.run_in_parallel(threads)
    }

    /// What the blocks of a cooperative grid meet at, as the driver lays it out: its size and the barrier's counter, which
    /// is zero in the beginning.
    fn grid_workspace(&mut self) -> Result<u64, Error> {
        const BYTES: u32 = 64;
        let pointer = match self.workspace {
            Some(pointer) => pointer,
            None => self.memory.allocate(u64::from(BYTES), Some("the workspace of the grid"), false)?,
        };
        self.workspace = Some(pointer);
        let mut data = [0; BYTES as usize];
        data[..4].copy_from_slice(&BYTES.to_le_bytes());
        self.memory.write(pointer, &data)?;
        Ok(pointer.address())
    }

    /// Gives the variables of a module their memory, once.
    fn load(&mut self, module: &Module) -> Result<&[u64], Error> {
        if !self.loaded.contains_key(&module.id) {
            let mut addresses: Vec<u64> = vec![];
            for variable in &module.ast.variables {
                let constant = variable.space == Space::Const;
                let bytes = variable.bytes.filter(|_| constant || variable.space == Space::Global);
                let Some(bytes) = bytes else {
                    addresses.push(0);
                    continue;
                };
                let pointer = self.memory.allocate(bytes, Some(&variable.name), constant)?;
                // Variables without an initial value are zero (PTX manual, "Initializers").
                let mut initial = variable.initial.clone();
                initial.resize(bytes as usize, 0);
                self.memory.write(pointer, &initial)?;
                addresses.push(pointer.address());
            }
            // Now that all have a place, those that hold addresses of others get them.
            for (variable, base) in module.ast.variables.iter().zip(&addresses) {
                for (at, reference) in &variable.addresses {
                    let index = module.ast.variables.iter().position(|other| other.name == reference.name);
                    let found = index.map(|index| addresses[index]).filter(|address| *address != 0);
                    let Some(address) = found.or_else(|| function_address(&module.ast, &reference.name)) else {
                        let Reference { name, .. } = reference;
                        let message =
                            format!("{} holds the address of {name}, which is not in the module", variable.name);
                        return Err(Error::syntax(1, message));
                    };
                    let address = address.wrapping_add_signed(reference.offset);
                    let place = DevicePointer::from_address(base + *at as u64);
                    self.memory.write(place, &address.to_le_bytes())?;
                }
            }
            self.loaded.insert(module.id, addresses);
        }
        Ok(self.loaded.get(&module.id).map_or(&[], Vec::as_slice))
    }
}

/// Lays out the arguments as the parameters want them.
fn parameters(kernel: &Kernel, args: &[Arg]) -> Result<Store, String> {
    if args.len() != kernel.params.len() {
        return Err(format!("{} arguments where the kernel has {} parameters", args.len(), kernel.params.len()));
    }
    let size = kernel.params.last().map_or(0, |last| last.offset + last.bytes);
    if size > MAX_PARAMETERS {
        return Err(format!("{size} bytes of parameters; a kernel may have {MAX_PARAMETERS}"));
    }
    let store = Store::new(size, false);
    for (index, (param, arg)) in kernel.params.iter().zip(args).enumerate() {
        let bytes = arg.as_bytes();
        if bytes.len() as u64 != param.bytes {
            let have = bytes.len();
            return Err(format!("argument {index} has {have} bytes, the parameter {}", param.bytes));
        }
        store.write(param.offset, bytes);
    }
    Ok(store)
}

fn check_grid(kernel: &Kernel, grid: Grid) -> Result<(), String> {
    let threads: u64 = grid.threads.iter().map(|size| u64::from(*size)).product();
    let fits =
        |sizes: [u32; 3], limits: [u32; 3]| sizes.iter().zip(&limits).all(|(size, limit)| (1..=*limit).contains(size));
    if !fits(grid.threads, MAX_BLOCK) || threads > MAX_THREADS {
        return Err(format!("a block of {:?} threads; at most {MAX_THREADS} are possible", grid.threads));
    }
    if !fits(grid.blocks, MAX_BLOCKS) {
        return Err(format!("a grid of {:?} blocks", grid.blocks));
    }
    if let Some(most) = kernel.max_threads
        && threads > most.iter().map(|size| u64::from(*size)).product()
    {
        return Err(format!("a block of {threads} threads; .maxntid allows {most:?}"));
    }
    if let Some(wanted) = kernel.required_threads
        && wanted != grid.threads
    {
        return Err(format!("a block of {:?} threads; .reqntid wants {wanted:?}", grid.threads));
    }
    Ok(())
}
