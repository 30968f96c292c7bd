//! Every golden case against the CUDA kernels on the first NVIDIA GPU. Where there is none, every test is shown as not run.

dsv2::conformance_suite!(dsv2::backend::OnDevice::Cuda);
