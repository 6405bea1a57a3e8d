//! Shared libraries that are looked for when they are needed, so that nothing is asked of the machine that builds this.

/// Declares a struct of the functions of a shared library, with `get` that loads it once.
macro_rules! library {
    ($name:ident, $file:literal, {
        $(fn $f:ident($($t:ty),* $(,)?) $(-> $r:ty)?;)*
        $(static $constant:ident: $c:ty;)*
    }) => {
        #[allow(non_snake_case, reason = "the library's names")]
        pub struct $name {
            _library: libloading::Library,
            $($f: unsafe extern "C" fn($($t),*) $(-> $r)?,)*
            $($constant: $c,)*
        }

        // SAFETY: addresses of functions and constants, which stay where they are.
        unsafe impl Send for $name {}
        // SAFETY: as above.
        unsafe impl Sync for $name {}

        impl $name {
            fn load() -> std::result::Result<$name, String> {
                // SAFETY: its initialisers are those of a library of the system; the types are those of its header.
                unsafe {
                    let library = libloading::Library::new($file).map_err(|_| concat!($file, " is not here"))?;
                    Ok($name {
                        $($f: *library
                            .get(concat!(stringify!($f), "\0").as_bytes())
                            .map_err(|_| concat!($file, " has no ", stringify!($f)))?,)*
                        $($constant: **library
                            .get::<*const $c>(concat!(stringify!($constant), "\0").as_bytes())
                            .map_err(|_| concat!($file, " has no ", stringify!($constant)))?,)*
                        _library: library,
                    })
                }
            }

            /// The library, for the life of the process.
            pub fn get() -> crate::engine::Result<&'static $name> {
                static LOADED: std::sync::OnceLock<std::result::Result<$name, String>> = std::sync::OnceLock::new();
                LOADED.get_or_init($name::load).as_ref().map_err(|error| error.clone().into())
            }
        }
    };
}

pub(super) use library;
