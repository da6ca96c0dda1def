// The signature of each operation: the list that a new one joins.
#pragma once

#include "kernels.hpp"

namespace {

using fastsoftmax::Operation;
using fastsoftmax::PerSlice;
using fastsoftmax::Signature;

constexpr double infinity = __builtin_inf();
constexpr int statistics_state = sizeof(fastsoftmax::Statistics) / sizeof(double);

template <Operation>
constexpr Signature signature = {};

template <>
constexpr Signature signature<Operation::softmax> = {.name = "softmax",
                                                     .output = true,
                                                     .masked_scores = -infinity,
                                                     .keeps_exponentials = true,
                                                     .sums_exponentials = true,
                                                     .state = statistics_state};

template <>
constexpr Signature signature<Operation::log_softmax> = {.name = "log_softmax",
                                                         .output = true,
                                                         .masked_scores = -infinity,
                                                         .masked_output = -infinity,
                                                         .sums_exponentials = true,
                                                         .state = statistics_state};

template <>
constexpr Signature signature<Operation::logsumexp> = {.name = "logsumexp",
                                                       .value = PerSlice::one,
                                                       .sign = PerSlice::one,
                                                       .masked_scores = -infinity,
                                                       .sums_exponentials = true,
                                                       .state = statistics_state};

// For the gradients of the transforms, the scores are y or logp; a masked entry has probability 0.
template <>
constexpr Signature signature<Operation::softmax_grad> = {
    .name = "softmax_grad", .second = true, .output = true, .rows_of_halves = true, .state = statistics_state};

template <>
constexpr Signature signature<Operation::log_softmax_grad> = {.name = "log_softmax_grad",
                                                              .second = true,
                                                              .output = true,
                                                              .masked_scores = -infinity,
                                                              .rows_of_halves = true,
                                                              .state = statistics_state};

template <>
constexpr Signature signature<Operation::cross_entropy> = {.name = "cross_entropy",
                                                           .labels = PerSlice::one,
                                                           .value = PerSlice::one,
                                                           .masked_scores = -infinity,
                                                           .sums_exponentials = true,
                                                           .state = statistics_state};

template <>
constexpr Signature signature<Operation::cross_entropy_grad> = {.name = "cross_entropy_grad",
                                                                .labels = PerSlice::one,
                                                                .output = true,
                                                                .second_output = true,
                                                                .value = PerSlice::one,
                                                                .masked_scores = -infinity,
                                                                .keeps_exponentials = true,
                                                                .sums_exponentials = true,
                                                                .state = statistics_state};

template <>
constexpr Signature signature<Operation::entropy> = {.name = "entropy",
                                                     .value = PerSlice::one,
                                                     .masked_scores = -infinity,
                                                     .sums_exponentials = true,
                                                     .state = statistics_state,
                                                     .value_of_none = 0};

// Slices are summed as for logsumexp. There are as many results as labels; they are scattered a part at a time.
constexpr Signature picks_signature(const char* name) {
    return {.name = name,
            .labels = PerSlice::own,
            .masked_scores = -infinity,
            .masked_output = -infinity,
            .sums_exponentials = true,
            .state = statistics_state};
}
template <>
constexpr Signature signature<Operation::log_softmax_at> = picks_signature("log_softmax_at");
template <>
constexpr Signature signature<Operation::log_softmax_top_k> = picks_signature("log_softmax_top_k");

constexpr Signature divergence_signature(const char* name, bool with_gradient) {
    return {.name = name,
            .second = true,
            .output = with_gradient,
            .value = PerSlice::one,
            .masked_scores = -infinity,
            .masked_second = -infinity,
            .keeps_both = true,
            .value_of_none = 0};
}
template <>
constexpr Signature signature<Operation::kl_divergence> = divergence_signature("kl_divergence", false);
template <>
constexpr Signature signature<Operation::kl_divergence_grad> = divergence_signature("kl_divergence_grad", true);

// Its own loop reads scores and weights, a block at a time.
constexpr Signature weighed_signature = {.name = "weighed_logsumexp",
                                         .value = PerSlice::one,
                                         .sign = PerSlice::one,
                                         .masked_scores = -infinity,
                                         .state = sizeof(fastsoftmax::WeighedSum) / sizeof(double)};

// Only totals are written.
constexpr Signature pieces_signature = {.name = "pieces",
                                        .value = PerSlice::one,
                                        .masked_scores = -infinity,
                                        .state = sizeof(fastsoftmax::Total) / sizeof(double)};

constexpr Signature sampling_signature = {.name = "sample", .masked_scores = -infinity};

}  // namespace
