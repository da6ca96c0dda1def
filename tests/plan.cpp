// Tests the plan of a call by itself: `plan PROMISE` checks one of the promises listed at the end.
#include "plan.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

using namespace fastsoftmax;

namespace {

int failures = 0;

#define EXPECT(condition)                                           \
    do {                                                            \
        if (!(condition)) {                                         \
            std::printf("line %d: not %s\n", __LINE__, #condition); \
            ++failures;                                             \
        }                                                           \
    } while (false)

constexpr Signature transform = {.name = "transform", .output = true, .keeps_exponentials = true, .state = 10};
constexpr Signature gradient = {
    .name = "gradient", .second = true, .output = true, .rows_of_halves = true, .state = 10};
constexpr Signature exponentials = {
    .name = "exponentials", .output = true, .keeps_exponentials = true, .sums_exponentials = true, .state = 10};
constexpr Signature reduction = {.name = "reduction", .value = PerSlice::one, .sign = PerSlice::one, .state = 10};
constexpr Signature several = {.name = "several", .value = PerSlice::own, .state = 10};

alignas(64) std::byte memory[64];  // never read: a plan looks at addresses only

// Arrays of shape (batch..., classes). In memory the class axis is the innermost, or the outermost.
struct Case {
    std::vector<std::ptrdiff_t> batch;
    std::ptrdiff_t classes;
    ElementType type = ElementType::float32;
    bool classes_first = false;
    bool masked = false;

    Slices slices(const Signature& signature) const {
        Slices s;
        std::ptrdiff_t stride = bytes_of(type);
        const auto axis = [&](std::ptrdiff_t size) {
            Axis a = {size, {}};
            for (const Role role : {Role::scores, Role::second, Role::output}) a.strides[role] = stride;
            stride *= size;
            return a;
        };
        std::vector<Axis> reversed;
        if (!classes_first) s.classes.append(axis(classes));
        for (auto size = batch.rbegin(); size != batch.rend(); ++size) reversed.push_back(axis(*size));
        if (classes_first) s.classes.append(axis(classes));
        for (auto a = reversed.rbegin(); a != reversed.rend(); ++a) s.batch.append(*a);
        s.arrays[Role::scores] = {memory, type};
        if (signature.second) s.arrays[Role::second] = {memory, type};
        if (signature.output) s.arrays[Role::output] = {memory, type};
        if (signature.value != PerSlice::none) s.arrays[Role::value] = {memory, type};
        if (signature.sign != PerSlice::none) s.arrays[Role::sign] = {memory, type};
        if (masked) s.arrays[Role::mask] = {memory, ElementType::boolean};
        return s;
    }
};

const Signature* const signatures[] = {&transform, &gradient, &exponentials, &reduction, &several};

template <class F>
void for_all(F f) {
    const std::vector<std::vector<std::ptrdiff_t>> batches = {{}, {1}, {7}, {8}, {17}, {300}, {3, 5}, {20, 17}, {0, 4}};
    for (const Signature* signature : signatures)
        for (const std::ptrdiff_t classes : {0, 1, 2, 56, 57, 100, 16384, 16385, 100'000, 300'000})
            for (const auto& batch : batches)
                for (const ElementType type : {ElementType::float16, ElementType::float32, ElementType::float64})
                    for (const int kind : {0, 1, 2, 3})
                        f(*signature, Case{batch, classes, type, (kind & 1) != 0, (kind & 2) != 0});
}

void contiguous_rows_stay_in_place() {
    const Plan plan(transform, Case{{10}, 100}.slices(transform), {});
    EXPECT(plan.loop == Loop::rows && plan.in_float && !plan.in_blocks);
    EXPECT(plan.workspace_size() == 0);
    EXPECT(!Plan(transform, Case{{10}, 100, ElementType::float64}.slices(transform), {}).in_float);
}

void few_classes_and_neighbouring_slices_go_through_tiles() {
    for (const ElementType type : {ElementType::float32, ElementType::float64})
        for (const bool first : {false, true}) {
            const Case few = {{100}, 10, type, first}, strided = {{100}, 1000, type, true};
            for (const Case& c : {few, strided}) {
                const Plan plan(transform, c.slices(transform), {});
                EXPECT(plan.loop == Loop::tiles);
                EXPECT(plan.unit == plan.lanes() && plan.at_once % plan.unit == 0);
            }
        }
    // Contiguous rows of gradients stay in place.
    EXPECT(Plan(gradient, Case{{100}, 10}.slices(gradient), {}).loop == Loop::rows);
}

void few_classes_and_neighbouring_slices_of_exponentials_stay_in_place() {
    for (const ElementType type : {ElementType::float32, ElementType::float64}) {
        for (const std::ptrdiff_t classes : {10, 56})
            EXPECT(Plan(exponentials, Case{{100}, classes, type}.slices(exponentials), {}).loop == Loop::rows);
        for (const std::ptrdiff_t classes : {10, 1000, 16384}) {
            const Plan plan(exponentials, Case{{100}, classes, type, true}.slices(exponentials), {});
            EXPECT(plan.loop == Loop::lines && plan.unit % plan.lanes() == 0);
        }
    }
    const Slices half = Case{{100}, 10, ElementType::float16}.slices(exponentials);
    EXPECT(Plan(exponentials, half, {}).loop == Loop::rows);
    // With a temperature, or terms of all classes, the maximum has to be known first.
    const Slices few = Case{{100}, 10}.slices(exponentials);
    EXPECT(Plan(exponentials, few, {.temperature = 2}).loop == Loop::tiles);
    EXPECT(Plan(exponentials, few, {.whole_slices = true}).loop == Loop::tiles);
    EXPECT(Plan(exponentials, Case{{100}, 16385, ElementType::float32, true}.slices(exponentials), {}).in_blocks);
}

void masks_and_other_types_are_gathered() {
    const Case masked = {.batch = {10}, .classes = 100, .masked = true}, half = {{10}, 100, ElementType::float16};
    for (const Case& c : {masked, half}) EXPECT(Plan(transform, c.slices(transform), {}).loop == Loop::gathered_rows);
}

void rows_of_halves_stay_in_place_where_a_loop_reads_them() {
    for (const ElementType half : {ElementType::float16, ElementType::bfloat16}) {
        const auto loop = [](const Signature& signature, const Slices& slices, double temperature = 1) {
            return Plan(signature, slices, {.temperature = temperature}).loop;
        };
        const Slices rows = Case{{10}, 100, half}.slices(gradient);
        EXPECT(loop(gradient, rows) == Loop::rows);
        EXPECT(Plan(gradient, rows, {}).workspace_size() == 0);
        EXPECT(loop(transform, Case{{10}, 100, half}.slices(transform)) == Loop::gathered_rows);
        EXPECT(loop(gradient, rows, 1e-40) == Loop::gathered_rows);
        EXPECT(loop(gradient, Case{{10}, 100, half, false, true}.slices(gradient)) == Loop::gathered_rows);
        EXPECT(loop(gradient, Case{{10}, 16'385, half}.slices(gradient)) == Loop::gathered_rows);
        EXPECT(loop(gradient, Case{{10}, 10, half}.slices(gradient)) == Loop::tiles);
        for (const Role role : {Role::scores, Role::second, Role::output}) {
            Slices mixed = rows, unaligned = rows, apart = rows, swapped = rows;
            mixed.arrays[role].type = half == ElementType::float16 ? ElementType::bfloat16 : ElementType::float16;
            unaligned.arrays[role].data += 1;
            apart.batch.axis[0].strides[role] += 1;
            swapped.arrays[role].swapped = true;
            for (const Slices& slices : {mixed, unaligned, apart, swapped})
                EXPECT(loop(gradient, slices) == Loop::gathered_rows);
        }
    }
}

void long_slices_are_taken_in_blocks_unless_they_must_be_whole() {
    const Slices slices = Case{{3}, 50'000}.slices(transform);
    EXPECT(Plan(transform, slices, {}).in_blocks);
    EXPECT(Plan(transform, slices, {}).blocks() == 4);
    EXPECT(!Plan(transform, slices, {.whole_slices = true}).in_blocks);
}

void temperatures_beyond_float_are_computed_in_double() {
    const Slices slices = Case{{3}, 100}.slices(transform);
    EXPECT(Plan(transform, slices, {.temperature = 0x1p99}).in_float);
    EXPECT(!Plan(transform, slices, {.temperature = 0x1p100}).in_float);
    EXPECT(!Plan(transform, slices, {.temperature = 0x1p-100}).in_float);
}

// The batch axes of a transposed array change places, so that neighbours in memory follow each other.
void slices_keep_their_order_only_if_asked() {
    Slices slices = Case{{20, 30}, 100}.slices(transform);
    std::swap(slices.batch.axis[0], slices.batch.axis[1]);
    const Plan sorted(transform, slices, {}), in_order(transform, slices, {.in_order = true});
    EXPECT(sorted.slices.batch.count == 1 && sorted.slices.batch.size() == 600);
    EXPECT(in_order.slices.batch.count == 2 && in_order.slices.batch.axis[0].size == 30);
    EXPECT(slices.batch.count == 2);  // the caller's slices are unchanged
}

void units_make_up_all_slices() {
    for_all([](const Signature& signature, const Case& c) {
        const Plan plan(signature, c.slices(signature), {});
        std::ptrdiff_t next = 0;
        for (std::ptrdiff_t unit = 0; unit < plan.units; ++unit) {
            const std::ptrdiff_t first = plan.slice_of(unit);
            EXPECT(first == next);
            next = first + std::min(plan.unit, plan.along - first % plan.along);
        }
        EXPECT(next == plan.count && plan.slice_of(plan.units) == plan.count);
    });
}

// Each part begins where the one before it ends, or later, or is null.
void the_parts_of_the_workspace_do_not_overlap() {
    for_all([](const Signature& signature, const Case& c) {
        Slices slices = c.slices(signature);
        if (signature.value == PerSlice::own) slices.own.append({5, {}});
        const Plan plan(signature, slices, {});
        std::vector<double> doubles(static_cast<std::size_t>(plan.workspace_size()) + 1);
        const Workspace w = plan.workspace(doubles.data());
        const bool gathers = plan.loop == Loop::gathered_rows || plan.loop == Loop::tiles;
        const std::ptrdiff_t gathered = !gathers ? 0 : plan.in_blocks ? block_classes : plan.classes * plan.at_once;
        const std::ptrdiff_t results = std::min(plan.at_once, std::max<std::ptrdiff_t>(plan.count, 1));
        struct {
            const void* begin;
            std::ptrdiff_t least;  // bytes
        } parts[] = {
            {w.x, gathered * plan.width()},
            {w.second, signature.second ? gathered * plan.width() : 0},
            {w.statistics, plan.in_blocks ? plan.unit * (plan.blocks() + 1) * signature.state * 8 : 0},
            {w.kept, w.kept ? plan.classes * plan.width() : 0},
            {w.value, signature.value == PerSlice::none ? 0 : results * (signature.value == PerSlice::own ? 5 : 1) * 8},
            {w.sign, signature.sign == PerSlice::none ? 0 : results * 8},
            {w.extra, 0},
        };
        const auto* end = reinterpret_cast<const std::byte*>(doubles.data());
        for (const auto& part : parts) {
            if (!part.begin) {
                EXPECT(part.least == 0);
                continue;
            }
            EXPECT(static_cast<const std::byte*>(part.begin) >= end);
            end = static_cast<const std::byte*>(part.begin) + part.least;
        }
        EXPECT(end <= reinterpret_cast<const std::byte*>(doubles.data() + plan.workspace_size()));
    });
}

#define PROMISE(name) {#name, name}
const struct {
    const char* name;
    void (*look)();
} promises[] = {
    PROMISE(contiguous_rows_stay_in_place),
    PROMISE(few_classes_and_neighbouring_slices_go_through_tiles),
    PROMISE(rows_of_halves_stay_in_place_where_a_loop_reads_them),
    PROMISE(few_classes_and_neighbouring_slices_of_exponentials_stay_in_place),
    PROMISE(masks_and_other_types_are_gathered),
    PROMISE(long_slices_are_taken_in_blocks_unless_they_must_be_whole),
    PROMISE(temperatures_beyond_float_are_computed_in_double),
    PROMISE(slices_keep_their_order_only_if_asked),
    PROMISE(units_make_up_all_slices),
    PROMISE(the_parts_of_the_workspace_do_not_overlap),
};

}  // namespace

int main(int count, char** arguments) {
    for (const auto& promise : promises)
        if (count == 2 && std::strcmp(arguments[1], promise.name) == 0) {
            promise.look();
            return failures != 0;
        }
    std::printf("no promise of this name\n");
    return 2;
}
