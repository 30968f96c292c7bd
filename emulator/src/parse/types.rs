//! The fundamental types (PTX manual, "State Spaces, Types, and Variables") and the state spaces.

/// The types: each with its name in PTX (without the dot) and its width.
macro_rules! types {
    ($($kind:ident $name:literal $bits:literal),+) => {
        /// A type as an instruction or a declaration names it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Type {
            $($kind),+
        }

        impl Type {
            /// The type called `name` (without its dot), if there is one.
            pub(crate) fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$kind),)+
                    _ => None,
                }
            }

            /// What [`Type::named`] knows it by.
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name),+
                }
            }

            /// Its width. A predicate has one bit.
            pub(crate) fn bits(self) -> u32 {
                match self {
                    $(Self::$kind => $bits),+
                }
            }
        }
    };
}

types! {
    U8 "u8" 8, U16 "u16" 16, U32 "u32" 32, U64 "u64" 64,
    S8 "s8" 8, S16 "s16" 16, S32 "s32" 32, S64 "s64" 64,
    B8 "b8" 8, B16 "b16" 16, B32 "b32" 32, B64 "b64" 64,
    F16 "f16" 16, F16x2 "f16x2" 32, Bf16 "bf16" 16, Bf16x2 "bf16x2" 32, F32 "f32" 32, F64 "f64" 64,
    U16x2 "u16x2" 32, S16x2 "s16x2" 32, Pred "pred" 1
}

impl Type {
    /// Its size in memory.
    pub(crate) fn bytes(self) -> u32 {
        self.bits().div_ceil(8)
    }

    /// Whether values are sign extended when they are widened.
    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }
}

/// Where a variable lives, or which memory an access names. `Generic` is an access that names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// No space is named: the address itself says which window it points into.
    Generic,
    /// Device memory, visible to every thread.
    Global,
    /// The memory of one block.
    Shared,
    /// The memory of one thread.
    Local,
    /// Read-only variables of the module.
    Const,
    /// The arguments of the kernel.
    Param,
}

impl Space {
    /// The space called `name`, as it is written in an opcode.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "global" => Self::Global,
            "shared" | "shared::cta" => Self::Shared,
            "local" => Self::Local,
            "const" => Self::Const,
            "param" | "param::entry" => Self::Param,
            _ => return None,
        })
    }
}

impl std::fmt::Display for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Generic => "generic",
            Self::Global => "global",
            Self::Shared => "shared",
            Self::Local => "local",
            Self::Const => "const",
            Self::Param => "param",
        })
    }
}
