//! Devices of the tests that do something of their own, and leave the rest to an emulator.

/// The methods of a `Device` that `self.inner` does: all but name, products, and taking and giving back memory.
macro_rules! rest_by_inner {
    () => {
        fn write(&self, address: u64, data: &[u8]) -> dsv2_optimized::Result<()> {
            self.inner.write(address, data)
        }
        fn read(&self, address: u64, data: &mut [u8]) -> dsv2_optimized::Result<()> {
            self.inner.read(address, data)
        }
        fn copy(&self, from: u64, to: u64, bytes: usize) -> dsv2_optimized::Result<()> {
            self.inner.copy(from, to, bytes)
        }
        fn fill(&self, address: u64, byte: u8, bytes: usize) -> dsv2_optimized::Result<()> {
            self.inner.fill(address, byte, bytes)
        }
        fn launch(
            &self,
            kernel: &dsv2_optimized::Kernel,
            grid: dsv2_optimized::Grid,
            args: &[dsv2_optimized::Arg],
        ) -> dsv2_optimized::Result<()> {
            self.inner.launch(kernel, grid, args)
        }
        fn synchronize(&self) -> dsv2_optimized::Result<()> {
            self.inner.synchronize()
        }
        fn capture(
            self: std::sync::Arc<Self>,
            work: &mut dyn FnMut() -> dsv2_optimized::Result<()>,
        ) -> dsv2_optimized::Result<Box<dyn dsv2_optimized::device::Graph>> {
            std::sync::Arc::clone(&self.inner).capture(work)
        }
        fn counts(&self) -> dsv2_optimized::device::Counts {
            self.inner.counts()
        }
        fn memory(&self) -> dsv2_optimized::Result<(usize, usize)> {
            self.inner.memory()
        }
    };
}
pub(crate) use rest_by_inner;
