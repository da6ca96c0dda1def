/* Calls back from every thread of a parallel region. */
void in_region(int threads, void (*call)(void)) {
#pragma omp parallel num_threads(threads)
    call();
}
