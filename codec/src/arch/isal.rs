//! ISA-L, Intel's storage library, called to be measured beside the kernels here: the one this
//! machine has installed, and the newest, which a crate builds. The field is the same, so that it is
//! given the same matrix and must answer with the same bytes.
//!
//! Invariant: pointers handed to the library come from slices whose number and lengths were checked
//! here; the tables have the size the library documents.

use std::ffi::{CStr, c_int, c_uchar, c_void};
use std::marker::PhantomData;

type InitTables = unsafe extern "C" fn(c_int, c_int, *mut c_uchar, *mut c_uchar);
type EncodeData =
    unsafe extern "C" fn(c_int, c_int, c_int, *mut c_uchar, *mut *mut c_uchar, *mut *mut c_uchar);
type InvertMatrix = unsafe extern "C" fn(*mut c_uchar, *mut c_uchar, c_int) -> c_int;

/// Bytes of tables for one factor.
const FACTOR_BYTES: usize = 32;

/// The functions of one ISA-L.
#[derive(Clone, Debug)]
pub(crate) struct IsaL {
    version: String,
    init_tables: InitTables,
    encode_data: EncodeData,
    invert_matrix: InvertMatrix,
}

impl IsaL {
    /// The one that was built with this program.
    #[cfg(feature = "isal")]
    pub(crate) fn newest() -> Self {
        unsafe extern "C" {
            fn isal_get_version_str() -> *const std::ffi::c_char;
        }
        // SAFETY: the library returns a constant string that ends with a zero.
        let version = unsafe { CStr::from_ptr(isal_get_version_str()) };
        Self {
            version: version.to_string_lossy().into_owned(),
            init_tables: erasure_isa_l_sys::ec_init_tables,
            encode_data: erasure_isa_l_sys::ec_encode_data,
            invert_matrix: erasure_isa_l_sys::gf_invert_matrix,
        }
    }

    /// The one that is installed, if one is.
    pub(crate) fn installed() -> Option<Self> {
        // SAFETY: the name is a string that ends with a zero; ISA-L runs nothing when loaded. It is
        // never unloaded, so its functions stay.
        let library = unsafe { libc::dlopen(c"libisal.so.2".as_ptr(), libc::RTLD_NOW) };
        let function = |name: &CStr| -> Option<*mut c_void> {
            // SAFETY: the handle is that of a loaded library, the name ends with a zero.
            let found = unsafe { libc::dlsym(library, name.as_ptr()) };
            (!found.is_null()).then_some(found)
        };
        if library.is_null() {
            return None;
        }
        let init_tables = function(c"ec_init_tables")?;
        let encode_data = function(c"ec_encode_data")?;
        let invert_matrix = function(c"gf_invert_matrix")?;
        // SAFETY: these are the types the functions have in every version of libisal.so.2.
        unsafe {
            Some(Self {
                version: version_of(encode_data)?,
                init_tables: std::mem::transmute::<*mut c_void, InitTables>(init_tables),
                encode_data: std::mem::transmute::<*mut c_void, EncodeData>(encode_data),
                invert_matrix: std::mem::transmute::<*mut c_void, InvertMatrix>(invert_matrix),
            })
        }
    }

    /// Major, minor and perhaps patch number.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// The inverse of a square matrix of `size` rows, if it has one.
    pub(crate) fn invert(&self, matrix: &[u8], size: usize) -> Option<Vec<u8>> {
        assert_eq!(matrix.len(), size * size, "isal invariant: a square matrix");
        let (mut matrix, mut inverse) = (matrix.to_vec(), vec![0; matrix.len()]);
        let rows = size as c_int;
        // SAFETY: both have size * size bytes.
        let failed =
            unsafe { (self.invert_matrix)(matrix.as_mut_ptr(), inverse.as_mut_ptr(), rows) };
        (failed == 0).then_some(inverse)
    }

    /// Everything known before a call, in the form the library wants: each output is a sum of the
    /// sources, all of one length, times the factors of its row.
    pub(crate) fn sums<'a>(
        &self,
        factors: &[u8],
        sources: &[&'a [u8]],
        outputs: &'a mut [&mut [u8]],
    ) -> Sums<'a> {
        assert_eq!(factors.len(), sources.len() * outputs.len(), "isal invariant: factors");
        let length = sources[0].len();
        let even = sources.iter().all(|source| source.len() == length)
            && outputs.iter().all(|output| output.len() == length);
        assert!(even && length <= c_int::MAX as usize, "isal invariant: one length");
        let mut tables = vec![0; FACTOR_BYTES * factors.len()];
        let (sources_count, outputs_count) = (sources.len() as c_int, outputs.len() as c_int);
        let mut factors = factors.to_vec();
        // SAFETY: the library reads sources x outputs factors and writes 32 bytes for each.
        unsafe {
            (self.init_tables)(
                sources_count,
                outputs_count,
                factors.as_mut_ptr(),
                tables.as_mut_ptr(),
            );
        }
        Sums {
            encode_data: self.encode_data,
            length: length as c_int,
            tables,
            sources: sources.iter().map(|source| source.as_ptr().cast_mut()).collect(),
            outputs: outputs.iter_mut().map(|output| output.as_mut_ptr()).collect(),
            borrowed: PhantomData,
        }
    }
}

/// Sums that the library computes again and again.
pub(crate) struct Sums<'a> {
    encode_data: EncodeData,
    length: c_int,
    tables: Vec<u8>,
    sources: Vec<*mut u8>,
    outputs: Vec<*mut u8>,
    borrowed: PhantomData<&'a mut [u8]>,
}

impl Sums<'_> {
    #[inline]
    pub(crate) fn compute(&mut self) {
        // SAFETY: sources and outputs are borrowed as long as this lives and have `length` bytes
        // each; the library reads the sources only; the tables were made for these numbers.
        unsafe {
            (self.encode_data)(
                self.length,
                self.sources.len() as c_int,
                self.outputs.len() as c_int,
                self.tables.as_mut_ptr(),
                self.sources.as_mut_ptr(),
                self.outputs.as_mut_ptr(),
            );
        }
    }
}

/// The version in the name of the file that holds `function`: libisal.so.2.0.30 is ISA-L 2.30.
fn version_of(function: *mut c_void) -> Option<String> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: dladdr fills in the structure if it returns other than 0; the name is a string that
    // ends with a zero, kept while the library is loaded.
    let path = unsafe {
        if libc::dladdr(function, info.as_mut_ptr()) == 0 {
            return None;
        }
        CStr::from_ptr(info.assume_init().dli_fname).to_str().ok()?
    };
    let file = std::fs::canonicalize(path).ok()?;
    let (_, numbers) = file.file_name()?.to_str()?.split_once(".so.")?;
    let numbers: Vec<&str> = numbers.split('.').collect();
    Some(format!("{}.{}", numbers.first()?, numbers.last()?))
}
