//! Instructions of the manual that are not run, each with the reason: one clear error instead of a guess.

const CLUSTERS: &str = "there are no clusters of blocks";
const PROXY: &str = "the asynchronous proxy of sm_90 (wgmma, tensor maps, bulk copies) is not emulated";
const BARRIERS: &str = "barriers in shared memory that count transactions are not emulated";
const TEXTURES: &str = "there are no textures and surfaces";
const TENSOR_MEMORY: &str = "the tensor memory of sm_100 is not emulated";
const DEBUGGER: &str = "there is no debugger";
const STACK: &str = "there is no stack: local memory is laid out before the kernel runs";

/// Names, and why.
const REFUSED: [(&str, &str); 45] = [
    ("wgmma", PROXY),
    ("cp.async.bulk", PROXY),
    ("cp.reduce.async.bulk", PROXY),
    ("tensormap", PROXY),
    ("fence.proxy", PROXY),
    ("membar.proxy", PROXY),
    ("st.async", PROXY),
    ("st.bulk", PROXY),
    ("red.async", PROXY),
    ("multimem", "there is one device only"),
    ("clusterlaunchcontrol", CLUSTERS),
    ("barrier.cluster", CLUSTERS),
    ("mapa", CLUSTERS),
    ("getctarank", CLUSTERS),
    ("setmaxnreg", "the number of registers is not limited, and cannot be changed"),
    ("tcgen05", TENSOR_MEMORY),
    ("mbarrier.expect_tx", BARRIERS),
    ("mbarrier.complete_tx", BARRIERS),
    ("mbarrier.arrive.expect_tx", BARRIERS),
    ("mbarrier.arrive_drop.expect_tx", BARRIERS),
    ("tex", TEXTURES),
    ("tld4", TEXTURES),
    ("txq", TEXTURES),
    ("istypep", TEXTURES),
    ("suld", TEXTURES),
    ("sust", TEXTURES),
    ("sured", TEXTURES),
    ("suq", TEXTURES),
    ("brkpt", DEBUGGER),
    ("alloca", STACK),
    ("stacksave", STACK),
    ("stackrestore", STACK),
    ("discard", "a line of the cache cannot be given up"),
    ("vadd", VIDEO),
    ("vsub", VIDEO),
    ("vabsdiff", VIDEO),
    ("vmin", VIDEO),
    ("vmax", VIDEO),
    ("vshl", VIDEO),
    ("vshr", VIDEO),
    ("vmad", VIDEO),
    ("vset", "comparisons of video instructions are not emulated"),
    ("isspacep.shared::cluster", CLUSTERS),
    ("cvta.shared::cluster", CLUSTERS),
    ("prefetch.tensormap", PROXY),
];

const VIDEO: &str = "video instructions of one number are not emulated";

/// Why an opcode is refused by its name, if it is.
pub(super) fn reason(opcode: &str) -> Option<String> {
    let begins = |name: &str| {
        opcode.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', ':', '2', '4']))
    };
    let (name, why) = REFUSED.iter().find(|(name, _)| begins(name))?;
    let whole = opcode.split('.').next().unwrap_or_default();
    Some(format!("{} is not supported: {why}", if name.contains('.') { name } else { whole }))
}
